"""Single-process alignment of language models in PyTorch Lightning."""

import lazy_loader

import lit_ift.moved  # noqa: F401  # Old module names work from here on.

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
