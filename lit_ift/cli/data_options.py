"""The options of ``lit-ift data``: those of a command, of the files that it reads, or of a configuration."""

import re
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from jsonargparse import ArgumentParser, Namespace

from lit_ift.cli.command import COMMANDS
from lit_ift.cli.tree import add_options, parse
from lit_ift.data.modules.conversation import SPLITS, ConversationDataModule, Split
from lit_ift.data.modules.feedback import FeedbackDataModule
from lit_ift.data.modules.instruction import InstructionDataModule
from lit_ift.data.read.sources import Source
from lit_ift.data.report.terminal import Thresholds
from lit_ift.errors import UserError

T = TypeVar("T")

FLAGS: Final = ("--batch", "--tokens", "--help", "-h")
"""Options that take no value."""

CONFIG_OPTIONS: Final = ("--config", "-c")

OF_CONFIGURATION: Final = ("--data", "--model", "--trainer", "--seed_everything")
"""Options that go with a configuration, and their parts."""

NOT_FOR_FILES: Final = {
    *("train", "val", "test", "predict", "train_split", "val_split", "test_split", "predict_split"),
    *("val_fraction", "on_bad_row", "num_workers", "eval_batch_size"),
}
"""Options of the data module that say nothing of how files are read and encoded."""


@dataclass(frozen=True)
class CheckOptions:
    """Where the report goes besides the terminal.

    Args:
        split: which split: of the sources where files or hub ids are named, of the data module with --config.
        json: file to write the whole report to, as JSON.
        html: file to write a self-contained page to.
        skipped: file to write every skipped row to, as JSON Lines: its id, the reason, and what to do about it.
    """

    split: str | None = None
    json: Path | None = None
    html: Path | None = None
    skipped: Path | None = None


@dataclass(frozen=True)
class PreviewOptions:
    """What is shown.

    Args:
        split: which split: of the sources where files or hub ids are named, of the data module with --config.
        rows: how many rows.
        row_id: show the row of this id, as `lit-ift data check` names it.
        seed: draw the rows at random with this seed, instead of showing the first ones.
        html: file to write a self-contained page to.
        batch: show the first batch, with its padding.
        tokens: show the borders of tokens and their ids.
    """

    split: str | None = None
    rows: int = 5
    row_id: str | None = None
    seed: int | None = None
    html: Path | None = None
    batch: bool = False
    tokens: bool = False


@dataclass(frozen=True)
class ScoreOptions:
    """What scores in files mean.

    Args:
        score_range: lowest and highest score of scored rows, such as [1, 10]; [0, 1] if it is not given.
    """

    score_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class SplitOptions:
    """What is read of files.

    Args:
        split: which split of sources that have several.
    """

    split: str | None = None


class Kinds(NamedTuple):
    """The options of a command by the classes that hold them.

    Args:
        own: with files and with a configuration.
        of_files: with files alone, besides those of the data module.
        data_module: which reads the files.
    """

    own: tuple[type, ...]
    of_files: type
    data_module: type[InstructionDataModule | FeedbackDataModule]


COMMAND_OPTIONS: Final = {
    "check": Kinds((CheckOptions, Thresholds), ScoreOptions, FeedbackDataModule),
    "preview": Kinds((PreviewOptions,), ScoreOptions, FeedbackDataModule),
    "build": Kinds((), SplitOptions, InstructionDataModule),
}


class Call(NamedTuple):
    """A parsed command line.

    Args:
        options: values of the command's own options.
        data_module: the one that the files or the configuration ask for.
        split: the only split to look at; None for all.
    """

    options: Namespace
    data_module: ConversationDataModule
    split: Split | None

    def pick(self, kind: type[T]) -> T:
        """The options of one kind."""
        return kind(**{name: self.options[name] for name in signature(kind).parameters})


def read(command: str, words: Sequence[str], *, skip_bad_rows: bool) -> Call:
    """Read a command line.

    Args:
        command: one of `COMMAND_OPTIONS`.
        words: what follows it.
        skip_bad_rows: skip and count them, whatever the configuration says.

    Raises:
        argparse.ArgumentError: an option is unknown or has a wrong value, or it is not said what to look at.
        UserError: the data module refuses its options.
    """
    files, options = _sort(words)
    configured = any(name in CONFIG_OPTIONS for name, _ in options)
    if configured:
        # Errors about rows name the option as it is written beside files.
        options = _sort([re.sub("^--columns(?=$|=)", "--data.init_args.columns", word) for word in words])[1]
    of_configuration = [(name, text) for name, text in options if _is_of_configuration(name)]
    if configured and files:
        raise ArgumentError(None, f"name files ({', '.join(files)}) or --config, not both")
    if of_configuration and not configured:
        raise ArgumentError(None, f"{of_configuration[0][0]} changes a configuration: name one with --config")
    own = [word for name, text in options if not _is_of_configuration(name) for word in text]
    name = f"data {command}"
    parser, of_module = _parser(command, with_files=not configured)
    values = parse([*name.split(), *own], name, parser)
    if configured:
        text = [word for _, words in of_configuration for word in words]
        # It makes the whole parser of `fit`, which files do without.
        from lit_ift.cli.data_configuration import load

        configured_module = load(text, skip_bad_rows=skip_bad_rows)
        return Call(values, configured_module, _split_of(configured_module, values.get("split")))
    if not files:
        raise ArgumentError(None, "name the files to look at, or a configuration with --config")
    module = COMMAND_OPTIONS[command].data_module(
        train=[Source(file, score_range=values.get("score_range")) for file in files],
        train_split=values.get("split"),
        on_bad_row="skip" if skip_bad_rows else "error",
        **{name: values[name] for name in of_module},
    )
    if module.tokenizer_source is None:
        raise ArgumentError(None, "name the --tokenizer that encodes the files: a folder or a hub id")
    return Call(values, module, None)


def _parser(command: str, *, with_files: bool) -> tuple[ArgumentParser, list[str]]:
    """The options of a command, but for those that change a configuration; names of those of the data module."""
    parser = ArgumentParser(description=COMMANDS[f"data {command}"].sentence)
    kinds = COMMAND_OPTIONS[command]
    for kind in (*kinds.own, *([kinds.of_files] if with_files else [])):
        add_options(parser, kind)
    of_module: list[str] = []
    if with_files:
        taken = {action.dest for action in parser._actions}
        of_module = parser.add_class_arguments(InstructionDataModule, skip=NOT_FOR_FILES | taken)
    parser.usage = (
        f"lit-ift data {command} FILE... --tokenizer ID [options]\n"
        f"       lit-ift data {command} --config FILE [options] [--data.init_args.KEY VALUE ...]"
    )
    return parser, of_module


def _sort(words: Sequence[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Files, and options by name with the words that they consist of."""
    files: list[str] = []
    options: list[tuple[str, list[str]]] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-") or word == "-":
            files.append(word)
            continue
        name, is_one_word, _ = word.partition("=")
        value = [] if is_one_word or name in FLAGS else [next(rest, None)]
        options.append((name, [word, *(part for part in value if part is not None)]))
    return files, options


def _is_of_configuration(name: str) -> bool:
    return name in CONFIG_OPTIONS or name in OF_CONFIGURATION or "." in name


def _split_of(module: ConversationDataModule, name: str | None) -> Split | None:
    for split in SPLITS:
        if split == name and module.has_split(split):
            return split
    if name is None:
        return None
    there = ", ".join(split for split in SPLITS if module.has_split(split))
    raise UserError(f"--split={name}: the data module has no such split. It has {there}.")
