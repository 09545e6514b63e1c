"""SIGTERM and Ctrl-C as requests to stop after the optimizer step."""

import os
import signal
import threading
from typing import Any

import lightning as L

from lit_ift.lightning_private import handle_sigterm, signal_launched


class StopSignals:
    """Notes the signals that ask a run to stop.

    Attributes:
        received: the one that came to this process, None before.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._launcher: Any = None

    def take_sigterm(self, trainer: L.Trainer) -> None:
        """Note SIGTERM and go on. Lightning's handler has all ranks talk from inside it, which can hang them.

        It would be in force until a later hook could replace it: during the first validation, and what other callbacks
        do before training.
        """
        self.received = None
        self._launcher = trainer.strategy.launcher
        handle_sigterm(trainer, self._note)

    def leave_sigterm(self, trainer: L.Trainer) -> None:
        """Let the Trainer register its own handler again."""
        handle_sigterm(trainer, None)

    def take_interrupts(self) -> None:
        """Note the first Ctrl-C and go on, too; the second one ends the process."""
        if threading.current_thread() is not threading.main_thread():
            return
        # Jobs in the background ignore it, and notebooks have a handler of their own.
        if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note_interrupt)

    def leave_interrupts(self) -> None:
        """Let Ctrl-C end the process at once, as there is no optimizer step to end any more."""
        if signal.getsignal(signal.SIGINT) == self._note_interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.received is None:
            signal_launched(self._launcher, signal.SIGTERM)
            self.received = signal.Signals(number)

    def _note_interrupt(self, number: int, frame: Any) -> None:
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self._note(number, frame)
        self.received = signal.SIGINT
        # Not by print: the signal may have come in the middle of one.
        os.write(2, b"\nCtrl-C: ends after this optimizer step with a checkpoint; once more ends at once.\n")
