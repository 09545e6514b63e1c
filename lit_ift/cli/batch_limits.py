"""Lets ``trainer.limit_train_batches: 1`` be one batch."""

from typing import Final

import lightning as L

LIMITS: Final = tuple(f"limit_{what}_batches" for what in ("train", "val", "test", "predict"))
"""Options of the Trainer in which 1 is one batch, and 1.0 all of them."""


def keep_whole_numbers() -> None:
    """Have the parser try whole numbers before others, as Lightning's annotations mean it.

    Python keeps ``Optional[Union[float, int]]`` for ``Optional[Union[int, float]]`` too, if it saw that one first, and
    the parser makes 1.0 of 1 then. ``int | float`` is not kept.
    """
    init = L.Trainer.__init__
    for function in (init, getattr(init, "__wrapped__", init)):
        function.__annotations__.update(dict.fromkeys(LIMITS, int | float | None))
