"""What docs/choose.md names is there."""

import re
from pathlib import Path

import lit_ift
from lit_ift.losses import PAIR_LOSSES, TOKEN_LOSSES

PAGE = (Path(__file__).parents[3] / "docs" / "choose.md").read_text(encoding="utf-8")


def test_modules_and_losses_are_there() -> None:
    losses = re.findall(r"loss: (\w+)", PAGE) + re.findall(r"\{name: (\w+)\}", PAGE)
    assert len(losses) >= 7
    assert set(losses) <= {*PAIR_LOSSES, *TOKEN_LOSSES}
    modules = re.findall(r"`(\w+Module)`", PAGE)
    assert len(modules) >= 8
    assert set(modules) <= set(lit_ift.__all__)


def test_links_lead_somewhere() -> None:
    folder = Path(__file__).parents[3] / "docs"
    for path in re.findall(r"\]\(([\w.-]+\.md)", PAGE):
        assert (folder / path).is_file()
