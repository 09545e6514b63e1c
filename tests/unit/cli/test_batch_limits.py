"""A number of batches stays a number, and a share of them a share."""

import pytest

from lit_ift.cli.batch_limits import LIMITS
from lit_ift.cli.plan_configuration import parsed


@pytest.mark.parametrize(("written", "meant"), [("1", 1), ("1.0", 1.0), ("2", 2), ("0.5", 0.5)])
def test_one_batch_is_not_all_of_them(written: str, meant: float) -> None:
    words = ["--model", "SFTModule", "--model.init_args.model", "x", "--data", "InstructionDataModule"]
    words += ["--data.init_args.batch_size", "1"]
    limits = [word for name in LIMITS for word in (f"--trainer.{name}", written)]
    trainer = parsed([*words, *limits]).trainer
    for name in LIMITS:
        assert (trainer[name], type(trainer[name])) == (meant, type(meant))
