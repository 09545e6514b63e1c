"""A callback that ends the process after its first optimizer step; see startup.py."""

import os
from typing import Any

import lightning as L


class FirstStep(L.Callback):
    """Ends the process, with code 0 and nothing written, once the weights have changed for the first time."""

    def on_train_batch_end(self, *_: Any) -> None:
        os._exit(0)
