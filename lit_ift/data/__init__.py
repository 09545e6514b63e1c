"""Data: record -> messages -> ids and labels -> batch, and the data modules built from these steps.

Names are imported when first used, because Lightning takes seconds to import.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
