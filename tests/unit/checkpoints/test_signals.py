"""Ctrl-C while a run trains; that a run goes on from the checkpoint is tested on whole runs."""

import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lit_ift.callbacks import RunCheckpoint
from lit_ift.checkpoints.signals import StopSignals


def listening() -> StopSignals:
    """Those of a run that trains."""
    connector = SimpleNamespace()
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(launcher=None), _signal_connector=connector)
    signals = StopSignals()
    signals.take_sigterm(trainer)
    signal.signal(signal.SIGTERM, connector._sigterm_notifier_fn)
    signals.take_interrupts()
    return signals


@pytest.fixture(autouse=True)
def restored_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_only_a_second_interrupt_ends_a_run_at_once(capfd) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signals = listening()
    signal.raise_signal(signal.SIGINT)
    assert "once more ends at once" in capfd.readouterr().err
    assert signals.received == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_run_in_the_background_ignores_interrupts_as_before() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals = listening()
    signal.raise_signal(signal.SIGINT)
    assert signals.received is None
    signal.raise_signal(signal.SIGTERM)
    assert signals.received == signal.SIGTERM


def test_an_error_puts_the_usual_interrupt_back() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    callback = RunCheckpoint()
    callback._signals = listening()
    trainer: Any = SimpleNamespace(is_global_zero=False)
    callback.on_exception(trainer, cast(Any, None), ValueError())
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
