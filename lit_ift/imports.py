"""Objects that a configuration names by import path: imported, and checked against their option before any call."""

import inspect
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any, get_type_hints


def imported(where: str, path: str) -> Any:
    """What an import path (``package.module.name``) names.

    Raises:
        ValueError: it cannot be imported.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{where}={path!r} cannot be imported: {error}. Start from the folder that it stands in, or put that "
            "folder on PYTHONPATH."
        ) from error
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{where}={path!r} cannot be imported: {error}") from error
    except Exception as error:  # Of the user's own module, which may be unfinished.
        raise ValueError(f"{where}={path!r} cannot be imported: {type(error).__name__}: {error}") from error


def check_makes(where: str, maker: Any, kind: type, *, by_path: bool = True) -> None:
    """Refuse what would not make a ``kind``, without calling it: it might do anything instead.

    Args:
        where: the option that it stands for.
        maker: a subclass of ``kind``, or a Python function annotated to return one; or a ``functools.partial`` of such.
        kind: what is needed.
        by_path: a configuration names it. Python code may also give a function that says nothing of what it returns,
            such as a ``lambda``.

    Raises:
        ValueError: it is neither.
    """
    target = maker.func if isinstance(maker, partial) else maker
    returned = target if isinstance(target, type) else _return_annotation(target)
    if isinstance(returned, type):
        fits = issubclass(returned, kind)
    else:
        fits = not by_path and callable(target) and not inspect.isbuiltin(target)
    if not fits:
        name = getattr(target, "__qualname__", None)
        shown = repr(target) if name is None else f"{target.__module__}.{name}"
        remedy = f"a subclass of {kind.__module__}.{kind.__qualname__}" if kind is not object else "a class"
        raise ValueError(
            f"{where}={shown} does not fit and was not called. Give {remedy}, or a Python function that is annotated "
            "to return one."
        )


def check_is_function(where: str, found: Any) -> None:
    """Refuse anything but a Python function: of others the signature need not say what a call does.

    Raises:
        ValueError: it is none.
    """
    if not inspect.isfunction(found):
        raise ValueError(f"{where} is not a Python function, but {type(found).__name__} {found!r}.")


def _return_annotation(function: Any) -> Any:
    """What a Python function is annotated to return, evaluated; None where it does not say so."""
    annotation = function.__annotations__.get("return") if inspect.isfunction(function) else None
    if not isinstance(annotation, str):
        return annotation
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"return": annotation}), function.__globals__)["return"]
    except NameError:  # The module imports the name for type checkers alone.
        return annotation
