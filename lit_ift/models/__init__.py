"""Obtaining, loading and exporting Hugging Face models.

The names are imported on first use, so that ``import lit_ift.models`` costs neither torch nor transformers.
"""

from typing import Any

import lazy_loader

from lit_ift.moved import moved_name

_lazy, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    return _lazy(name) if name in __all__ else moved_name(__name__, name)
