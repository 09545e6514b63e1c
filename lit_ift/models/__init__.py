"""Obtaining, loading and exporting Hugging Face models.

The names are imported on first use, so that ``import lit_ift.models`` costs neither torch nor transformers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
