"""Data: record -> messages -> ids and labels -> batch, and the data modules built from these steps.

Names are imported when first used, because Lightning takes seconds to import.
"""

from typing import Any

import lazy_loader

from lit_ift.moved import moved_name

_lazy, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    return _lazy(name) if name in __all__ else moved_name(__name__, name)
