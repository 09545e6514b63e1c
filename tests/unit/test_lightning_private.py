"""Lightning's members without a promise: each that is used is listed, and is there."""

import ast
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import lightning
import pytest

import lit_ift
from lit_ift.lightning_private import INHERITED, READ

USED = [
    pytest.param(path, name, id=f"{path.rpartition('.')[2]}.{name}")
    for table in (READ, INHERITED)
    for path, names in table.items()
    for name in names
]


@pytest.mark.parametrize(("path", "name"), USED)
def test_each_is_there(path: str, name: str) -> None:
    module, _, class_name = path.rpartition(".")
    cls = getattr(importlib.import_module(module), class_name)
    bodies = [textwrap.dedent(inspect.getsource(parent)) for parent in cls.__mro__ if "lightning" in parent.__module__]
    set_there = re.compile(rf"self\.{name}\b\s*(:[^=\n]+)?=")
    assert hasattr(cls, name) or any(set_there.search(body) for body in bodies)


def lightning_names() -> set[str]:
    """Private attributes that Lightning defines anywhere."""
    found: set[str] = set()
    for folder in ("pytorch", "fabric"):
        for file in (Path(lightning.__file__).parent / folder).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            found |= {
                *re.findall(r"def (_[a-z]\w*)\(", text),
                *re.findall(r"self\.(_[a-z]\w*)\b\s*(?::[^=\n]+)?=", text),
            }
    return found


def test_no_other_is_used() -> None:
    """Where a name is this file's own as well, it is taken for that."""
    theirs = lightning_names()
    read, inherited = (
        {name for path, names in table.items() for name in (path.rpartition(".")[2], *names)}
        for table in (READ, INHERITED)
    )
    used: dict[str, list[str]] = {}
    for file in Path(lit_ift.__file__).parent.rglob("*.py"):
        nodes = [*ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
        own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
        for node in nodes:
            if isinstance(node, ast.Attribute) and node.attr in theirs - own:
                used.setdefault(node.attr, []).append(f"{file.name}:{node.lineno}")
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning"):
                for alias in node.names:
                    if alias.name.startswith("_"):
                        used.setdefault(alias.name, []).append(f"{file.name}:{node.lineno}")
    of_ours = {"_load", "_window", "_metrics"}  # Other classes of this package have these.
    assert {name: places for name, places in used.items() if name not in read | inherited | of_ours} == {}
    elsewhere = {
        name: [place for place in places if not place.startswith("lightning_private.py")]
        for name, places in used.items()
        if name in read - inherited
    }
    assert {name: places for name, places in elsewhere.items() if places} == {}
