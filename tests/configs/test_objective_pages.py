"""The command on the page of each objective is understood, and names what the page is about."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from lit_ift.cli.training import LitIFTCLI
from lit_ift.losses.pair_sum import pair_objective
from lit_ift.losses.token_registry import TOKEN_LOSSES, TokenLoss

ROOT = Path(__file__).parents[2]
LOSS = "--model.init_args.loss"
PAGES = sorted((ROOT / "docs" / "objectives").glob("*.md"))


class Parsing(LitIFTCLI):
    """Understands a command and stops there."""

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def command_of(page: Path) -> list[str]:
    (command,) = re.findall(r"^lit-ift fit .*$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return shlex.split(command)


@pytest.fixture(scope="module")
def understood() -> dict[tuple[str, ...], Any]:
    """What each command says of the model, where only the first of those that differ in the loss's name is parsed."""
    found: dict[tuple[str, ...], Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr("sys.argv", command_of(PAGES[0]))
        parser = Parsing.run().parser  # Takes longer than to parse.
        for words in map(command_of, PAGES):
            if but_for_the_loss(words) not in found:
                found[but_for_the_loss(words)] = parser.parse_args(words[1:]).fit.model
    return found


def but_for_the_loss(words: list[str]) -> tuple[str, ...]:
    place = words.index(LOSS) + 1 if LOSS in words else len(words)
    return (*words[:place], *words[place + 1 :])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_command_of_a_page(page: Path, understood: dict[tuple[str, ...], Any]) -> None:
    words = command_of(page)
    model = understood[but_for_the_loss(words)]
    (title,) = re.findall(r"^# (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    if not title.startswith("`"):
        assert model.class_path.rpartition(".")[2] == title
        return
    loss = words[words.index(LOSS) + 1] if LOSS in words else model.init_args.loss
    assert loss == title.strip("`")
    is_of_tokens = model.class_path.endswith("SFTModule")
    assert is_of_tokens == (loss in TOKEN_LOSSES)
    made = TokenLoss(loss, model.init_args.options) if is_of_tokens else pair_objective(loss, model.init_args.options)
    assert not made.needs_reference_tokens or model.init_args.reference == "model"
