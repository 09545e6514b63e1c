"""What a log file shows of a run's progress."""

from types import SimpleNamespace
from typing import Any

import pytest

from lit_ift.callbacks import progress
from lit_ift.callbacks.progress import ProgressLines


def test_lines_come_by_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A slow batch is heard of at once, a hundred fast ones in one line."""
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    lines = ProgressLines(seconds=10)
    trainer: Any = SimpleNamespace(num_predict_batches=[200])
    lines.on_predict_epoch_start()
    for batch in range(200):
        clock[0] += 60 if batch == 1 else 0.25
        lines.on_predict_batch_end(trainer, None, None, None, batch)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "predict, batch 1/200"
    assert shown[1] == "predict, batch 2/200, 1:39:25 left"
    assert shown[2].startswith("predict, batch 42/200, ")
    assert shown[-1] == "predict, batch 200/200"
    assert len(shown) == 2 + 4 + 1
    lines.disable()
    lines.on_predict_batch_end(trainer, None, None, None, 0)
    assert capsys.readouterr().out == ""
