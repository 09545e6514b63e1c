"""The random numbers of training, kept and given back."""

import io
import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from tiny import tiny_model
from torch.utils.data import DataLoader

from lit_ift import SFTModule
from lit_ift.callbacks import RandomState
from lit_ift.checkpoints.random_state import random_state, set_random_state


def draw() -> tuple[float, float, float, float]:
    return random.gauss(0, 1), float(np.random.standard_normal()), float(torch.rand(())), random.random()


def through_a_checkpoint(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_states_are_plain_and_complete() -> None:
    draw()  # Normal numbers come in pairs: the second of each is part of the state.
    state = through_a_checkpoint(random_state())
    expected = [draw() for _ in range(3)]
    set_random_state(state)
    assert [draw() for _ in range(3)] == expected


def test_what_draws_between_batches_changes_nothing() -> None:
    def numbers(disturb: bool) -> list[tuple[float, ...]]:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # type: ignore[func-returns-value]
        callback, drawn = RandomState(), []
        for _ in range(3):
            callback.on_train_batch_start()
            drawn.append(draw())
            callback.on_train_batch_end()
            if disturb:
                draw()
        return drawn

    assert numbers(disturb=True) == numbers(disturb=False)


@pytest.mark.parametrize("hook", ["inside", "after"])
def test_a_resumed_run_draws_what_comes_next(hook: str) -> None:
    callback = RandomState()
    callback.on_train_batch_start()
    draw()
    if hook == "inside":  # A callback that comes first saves in on_train_batch_end.
        state = through_a_checkpoint(callback.state_dict())
        callback.on_train_batch_end()
    else:
        callback.on_train_batch_end()
        draw()
        state = through_a_checkpoint(callback.state_dict())
    callback.on_train_batch_start()
    expected = draw()

    resumed = RandomState()
    resumed.load_state_dict(state)
    draw()
    resumed.on_train_batch_start()
    assert draw() == expected


def test_another_number_of_processes_is_said() -> None:
    state = RandomState().state_dict()
    with pytest.warns(UserWarning, match=r"written by 2 processes, and now there are 1: dropout"):
        RandomState().load_state_dict({"ranks": state["ranks"] * 2})


def test_a_plain_trainer_has_one(tmp_path: Path) -> None:
    """Whether the user gave one or not, in every fit."""
    for own in (None, RandomState()):
        module = SFTModule(tiny_model(), tokenizer=None)
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=None if own is None else [own],
        )
        ids = torch.arange(8).reshape(1, 8) + 4
        rows = [{"input_ids": ids, "labels": ids}]
        for steps in (1, 2):
            trainer.fit_loop.epoch_loop.max_steps = steps
            trainer.fit(module, DataLoader(rows, batch_size=None))
            (found,) = [callback for callback in trainer.callbacks if isinstance(callback, RandomState)]
            assert own is None or found is own
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        states = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]
        assert len(states["RandomState"]["ranks"]) == 1
