"""What other packages say in a run that is not for its user."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import lightning_utilities.core.rank_zero as lightning_messages

WARNINGS: Final = (
    "Be aware that when using `ckpt_path`, callbacks",  # of `validate`: it asks for one that only training has
    "The dirpath has changed from",  # of a checkpoint that is evaluated, or gone on from in another folder
    "Total length of `list` across ranks is zero",  # no validation data, which RunCheckpoint says
    "`is_gradient_checkpointing` is deprecated",  # peft's with transformers
)
"""What warnings begin with that packages have for one another."""

OF_OTHERS: Final = r"(?is)(?!.*lit.ift)"
"""Deprecations by this package are for its users."""

MESSAGES: Final = (
    "💡 Tip:",
    "TPU available: False",
    "Loading `train_dataloader` to estimate number of stepping batches.",
    "Trainer already configured with model summary callbacks",
)
"""What Lightning's messages begin with that tell nothing of the run."""


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what packages have for one another, and advertisements."""
    logger = lightning_messages.log
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f"{OF_OTHERS}.*deprecat")
        for kind in (DeprecationWarning, PendingDeprecationWarning):
            warnings.filterwarnings("ignore", message=OF_OTHERS, category=kind)
        for message in WARNINGS:
            warnings.filterwarnings("ignore", message=re.escape(message))
        logger.addFilter(_tells_something)
        try:
            yield
        finally:
            logger.removeFilter(_tells_something)


def _tells_something(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(MESSAGES)
