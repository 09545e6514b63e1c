"""A trained model as a Hugging Face folder: written whole, loaded again and compared, with a model card.

Names are imported when first used, because transformers takes seconds to import.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
