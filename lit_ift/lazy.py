"""Names that a package offers without importing their modules until one is used (PEP 562).

Lightning, torch and transformers take seconds to import; ``import lit_ift`` alone should not.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, module_of: Mapping[str, str]) -> Callable[[str], Any]:
    """Build the ``__getattr__`` of a package.

    Args:
        package: its ``__name__``.
        module_of: name to the module below ``package`` that defines it.
    """

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{module_of[name]}"), name)

    return get
