"""A conversation to token ids and a loss mask: templates, where the answers stand, control tokens.

Names are imported when first used, because transformers takes seconds to import.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
