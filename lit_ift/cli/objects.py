"""Objects that a configuration names are what their options need, which is checked before anything is called.

A configuration can import any code. It cannot call a function that makes something else, such as ``os.system``: the
parser would call it for an option that takes a callable.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from inspect import signature
from typing import Any, Final

from jsonargparse import ArgumentParser, Namespace
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_ift.imports import check_makes, imported

BUILDERS: Final[dict[str, type]] = {"optimizer": Optimizer, "lr_scheduler": LRScheduler}
"""Options that take a function to be called later, with what comes of it. Of others the parser compares the type."""


def check_objects(config: Namespace, parser: ArgumentParser) -> None:
    """Check every ``class_path`` of a parsed configuration, and have the parser keep functions for `BUILDERS`.

    Raises:
        ValueError: one is a function that is not annotated to return what its option needs.
    """
    for where, path in _class_paths(config, ""):
        found = imported(where, path)
        if isinstance(found, type):
            continue
        option = where.rpartition(".")[2]
        check_makes(where, found, BUILDERS.get(option, object))
        if option in BUILDERS:
            parser.add_instantiator(_keep, found, subclasses=False)


def _keep(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The function with its options set, but for the first, which is the parameters or the optimizer."""
    options.pop(next(iter(signature(function).parameters), ""), None)
    return partial(function, **options)


def _class_paths(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Where objects are described by ``class_path``, and by which."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        if isinstance(value.get("class_path"), str) and "." in value["class_path"]:
            yield where, value["class_path"]
        for name, part in value.items():
            yield from _class_paths(part, where if name == "init_args" else f"{where}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _class_paths(part, f"{where}[{number}]")
