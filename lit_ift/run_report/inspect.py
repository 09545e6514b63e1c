"""Rows as a model sees them, before any training or after it."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from lit_ift.data.modules.feedback import FeedbackDataModule
from lit_ift.data.read.sources import Source
from lit_ift.data.rows import EncodedRow
from lit_ift.errors import UserError
from lit_ift.generation.find import ModelPlace
from lit_ift.generation.opened import OpenedModel
from lit_ift.run_report.objective import Objective
from lit_ift.run_report.page import Page
from lit_ift.run_report.scores import read_rows
from lit_ift.run_report.spans import RowSpans


def check_output(output: Path, *, overwrite: bool) -> None:
    """Do nothing if a page may be written there.

    Raises:
        UserError: something is in the way, or there is no such folder.
    """
    if output.is_dir() or (output.exists() and not overwrite):
        remedy = "name a file in it" if output.is_dir() else "name another file, or say --overwrite"
        raise UserError(f"{output} exists: {remedy}.")
    if not output.absolute().parent.is_dir():
        raise UserError(f"{output}: there is no folder {output.parent}. Make it first.")


def has_base(place: ModelPlace, named: str | None) -> bool:
    """Whether a model is one that was trained from another, which is known without a look at the hub."""
    return named is not None or place.kind != "model" or place.run is not None


def encoded_rows(found: OpenedModel, source: Source, *, max_length: int) -> list[EncodedRow]:
    """The rows of a source as the model is trained on them; longer ones lose their end.

    Raises:
        RowError: a row cannot be used.
        UserError: there are none.
    """
    data = FeedbackDataModule(train=[source], tokenizer=found.tokenizer, max_length=max_length, cache=False)
    data.setup("fit")
    rows = data.datasets["train"].rows
    return [rows[i] for i in range(len(rows))]


def inspected(
    found: OpenedModel,
    rows: Sequence[EncodedRow],
    objective: Objective,
    *,
    name: str,
    compares: bool,
    batch_size: int,
) -> Page:
    """A page of rows as a model sees them, beside what its base model said.

    Args:
        found: the model.
        rows: to show.
        objective: how instruction rows are read.
        name: of the rows.
        compares: whether the base model is asked too.
        batch_size: rows read at a time.
    """
    read = read_rows(found, rows, objective, compares=compares, batch_size=batch_size)
    about = [f"model: {found.place.path}", f"rows: {name}", f"lit-ift {version('lit-ift')}"]
    if compares:
        about.insert(1, f"before training: {found.base_name}")
    return Page("Tokens as the model sees them", about, tokens=RowSpans(read, found.tokenizer))
