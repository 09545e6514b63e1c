"""Names of the last release still work, with a warning that gives the new name."""

import importlib
import sys

import pytest

from lit_ift.moved import MODULES, NAMES


@pytest.mark.parametrize("old", MODULES)
def test_an_old_module_is_the_new_one(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(FutureWarning, match=f"{old} is now {MODULES[old]}"):
        module = importlib.import_module(old)
    assert module is importlib.import_module(MODULES[old])
    assert module.__name__ == module.__spec__.name == MODULES[old]


@pytest.mark.parametrize("old", NAMES)
def test_an_old_name_of_a_package_is_the_new_one(old: str) -> None:
    package, name = old.rsplit(".", 1)
    with pytest.warns(FutureWarning, match=f"{old} is now {NAMES[old]}.{name}"):
        value = getattr(importlib.import_module(package), name)
    assert value is getattr(importlib.import_module(NAMES[old]), name)


def test_an_unknown_name_is_still_an_error() -> None:
    import lit_ift.data

    with pytest.raises(AttributeError, match="has no attribute 'Unknown'"):
        lit_ift.data.Unknown  # noqa: B018
