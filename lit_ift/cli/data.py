"""``lit-ift data``: look at the data of a configuration, or at files, without loading a model."""

import hashlib
import json
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import lightning as L
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from lit_ift.cli.training import LitIFTCLI, essence, explain_argument_error, take_paths_as_they_are
from lit_ift.data.modules.conversation import SPLITS, STAGE_SPLITS, ConversationDataModule, Split
from lit_ift.data.modules.feedback import FeedbackDataModule
from lit_ift.data.modules.instruction import InstructionDataModule
from lit_ift.data.read.sources import Source
from lit_ift.data.report import html, preview
from lit_ift.data.report import terminal as checks
from lit_ift.data.report.account import DataReport, NoUsableRowError
from lit_ift.data.report.account import logger as report_logger
from lit_ift.data.report.builder import Check
from lit_ift.data.report.terminal import About, Thresholds
from lit_ift.errors import RowError, UserError, did_you_mean
from lit_ift.models.added_tokens import add_tokens
from lit_ift.models.load import load_tokenizer

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

ENOUGH_TO_PREVIEW: Final = 200
"""Rows of each source that are encoded to show the first ones."""

NOT_A_TERMINAL: Final = 120
"""Width of a table in a file or a pipe [characters]."""


@dataclass(frozen=True)
class CheckOutput:
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
class PreviewOutput:
    """What is shown.

    Args:
        split: which split: of the sources where files or hub ids are named, of the data module with --config.
        rows: how many rows.
        row_id: show the row of this id, as `lit-ift data check` names it.
        seed: draw the rows at random with this seed, instead of showing the first ones.
        html: file to write a self-contained page to.
    """

    split: str | None = None
    rows: int = 5
    row_id: str | None = None
    seed: int | None = None
    html: Path | None = None


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


def run(words: Sequence[str]) -> int:
    """Run ``data <command> …``, given from ``<command>`` on, and return 0 for done or 1 for a threshold exceeded.

    Raises:
        argparse.ArgumentError: the call is wrong.
        UserError: the data or the configuration cannot be used.
    """
    name, *rest = words
    try:
        return COMMANDS[name](rest)
    except ArgumentError as error:
        raise ArgumentError(None, essence(str(error))) from error


def check(words: Sequence[str]) -> int:
    """Say what became of every row; fail if a threshold is exceeded."""
    call = parse("check", words, skip_bad_rows=True)
    if call is None:
        return 0
    output = _pick(CheckOutput, call.options)
    with _skipped_rows(output.skipped) as told:
        call.data_module.check = Check(told)
        if told is not None:
            call.data_module.uses_cache = False  # Cached rows were skipped once, and only some of them are known.
        reports = _set_up(call)
    thresholds = _pick(Thresholds, call.options)
    failed = checks.violations(reports, thresholds)
    any_threshold = any(most is not None for most in vars(thresholds).values())
    about = _about(call.data_module, list(reports))
    console = _console()
    for report in reports.values():
        console.print(checks.table(report))
    if output.json is not None:
        html.write_page(output.json, json.dumps(checks.as_json(reports, failed, about), indent=1, ensure_ascii=False))
    if output.html is not None:
        page = html.report_page(reports, failed, about, any_threshold=any_threshold)
        html.write_page(output.html, page)
    for violation in failed:
        print(f"lit-ift data check: failed: {violation}", file=sys.stderr)
    return 1 if failed else 0


def show(words: Sequence[str]) -> int:
    """Print rows in colour."""
    call = parse("preview", words, skip_bad_rows=True)
    if call is None:
        return 0
    output = _pick(PreviewOutput, call.options)
    as_batch = call.options.batch
    if output.rows < 1:
        raise ArgumentError(None, f"--rows={output.rows} must be at least 1")
    if as_batch and (output.row_id is not None or output.seed is not None):
        raise ArgumentError(None, "--batch shows the first batch: leave --row_id and --seed out")
    module = call.data_module
    if output.row_id is None and output.seed is None and not as_batch and module.max_rows is None:
        module.max_rows = max(ENOUGH_TO_PREVIEW, output.rows)
        module.uses_cache = False  # Of so few rows there is no use later.
    there: list[Split] = [name for name in SPLITS if module.has_split(name)]
    split = call.split or there[0]
    reports = _set_up(call._replace(split=split))
    if not reports[split].rows_kept:
        raise NoUsableRowError(reports[split])
    if as_batch:
        loader = getattr(module, f"{split}_dataloader")()
        conversations = preview.shown_batch(next(iter(loader)), rows=output.rows)
    else:
        dataset = module.datasets[split]
        conversations = preview.pick(dataset, rows=output.rows, row_id=output.row_id, seed=output.seed)
    segmenter = preview.Segmenter(module.tokenizer)
    console = _console()
    console.print(preview.legend())
    for conversation in conversations:
        console.print(preview.render(conversation, segmenter, tokens=call.options.tokens), soft_wrap=True)
    if output.html is not None:
        html.write_page(output.html, html.preview_page(conversations, segmenter, tokens=call.options.tokens))
    return 0


def build(words: Sequence[str]) -> int:
    """Tokenize all splits into the cache, so that training finds them there."""
    call = parse("build", words, skip_bad_rows=False)
    if call is None:
        return 0
    call.data_module.prepare_data()
    reports = _set_up(call)
    for split in SPLITS:
        if split not in reports:
            continue
        if not reports[split].rows_kept and not call.data_module.may_be_empty(split):
            raise NoUsableRowError(reports[split])
        folder = call.data_module.cache_folder(split)
        print(
            f"{reports[split]}; "
            + ("not cached: its source keeps no files" if folder is None else f"cached in {folder}")
        )
    return 0


COMMANDS: Final[dict[str, Callable[[Sequence[str]], int]]] = {"check": check, "preview": show, "build": build}


def parse(command: str, words: Sequence[str], *, skip_bad_rows: bool) -> Call | None:
    """Read a command line; None if it asked for help, which was printed.

    Args:
        command: one of `COMMANDS`.
        words: what follows it.
        skip_bad_rows: skip and count them, whatever the configuration says.

    Raises:
        argparse.ArgumentError: an option is unknown or has a wrong value, or it is not said what to look at.
        UserError: the data module refuses its options.
    """
    files, options = _sort(words)
    if any(name in ("--help", "-h") for name, _ in options):
        _parser(command, with_files=True)[0].print_help()
        return None
    configured = any(name in CONFIG_OPTIONS for name, _ in options)
    if configured and files:
        raise ArgumentError(None, f"name files ({', '.join(files)}) or --config, not both")
    if not configured and not files:
        raise ArgumentError(None, "name the files to look at, or a configuration with --config")
    parser, of_module = _parser(command, with_files=not configured)
    if configured:
        # Errors about rows name the option as it is written beside files.
        options = [(_of_module(name), [_of_module(words[0]), *words[1:]]) for name, words in options]
    theirs = [words for name, words in options if configured and _belongs_to_configuration(name)]
    own = [word for name, words in options if not (configured and _belongs_to_configuration(name)) for word in words]
    _check_known(parser, own)
    values = parser.parse_args(own)
    if not configured:
        chosen = {name: values[name] for name in of_module}
        chosen["on_bad_row"] = "skip" if skip_bad_rows else "error"
        score_range = chosen.pop("score_range", None)
        sources = [Source(file, score_range=score_range) for file in files]
        of_files = InstructionDataModule if command == "build" else FeedbackDataModule
        module = of_files(train=list[str | Source](sources), train_split=values.get("split"), **chosen)
        if module.tokenizer_source is None:
            raise ArgumentError(None, "name the --tokenizer that encodes the files: a folder or a hub id")
        return Call(values, module, None)
    cli = _BadRowsSkipped if skip_bad_rows else _DataOnly
    configured_module = cli.load([word for words in theirs for word in words])
    return Call(values, configured_module, _split_of(configured_module, values.get("split")))


class _DataOnly(LitIFTCLI):
    """Parses what ``fit`` parses, and makes nothing but the data module."""

    skip_bad_rows = False

    @classmethod
    def load(cls, words: list[str]) -> ConversationDataModule:
        """The data module of a configuration, which knows a tokenizer."""
        argv = sys.argv
        sys.argv = [argv[0], "fit", *words]
        try:
            module: ConversationDataModule = cls.run().datamodule
        except ArgumentError as error:
            raise ArgumentError(None, explain_argument_error(error, "fit")) from error
        finally:
            sys.argv = argv
        return module

    def instantiate_classes(self) -> None:
        config = self.config["fit"]
        if self.skip_bad_rows and "init_args.on_bad_row" in config.data:
            config.data["init_args.on_bad_row"] = "skip"
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(L.LightningDataModule, "data")
        take_paths_as_they_are(parser)
        try:
            module = parser.instantiate_classes(parser.parse_object({"data": config.data})).data
        except ValueError as error:
            raise UserError(f"The configuration cannot be used: {error}") from error
        if not isinstance(module, ConversationDataModule):
            raise UserError(f"data: {type(module).__name__} keeps no report. Use a ConversationDataModule.")
        if module.tokenizer_source is None:
            module.tokenizer_source = _tokenizer_of_model(config.model)
        self.datamodule = module

    def _set_seed(self) -> None:
        """Leave the global generators alone: the data modules draw from their own."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing: the data module is all that is wanted."""


class _BadRowsSkipped(_DataOnly):
    skip_bad_rows = True


def _tokenizer_of_model(model: Any) -> Any:
    """The tokenizer that the module would load."""
    options = model.get("init_args") or {}
    own, of_model = options.get("tokenizer"), options.get("model")
    spec = own or of_model
    if not isinstance(spec, str):
        raise UserError("Neither data.tokenizer nor the model's tokenizer is named. Set data.init_args.tokenizer.")
    tokenizer = load_tokenizer(
        spec,
        revision=options.get("revision") if own in (None, of_model) else None,
        trust_remote_code=bool(options.get("trust_remote_code")),
    )
    add_tokens(tokenizer, options.get("added_tokens") or ())
    return tokenizer


def _parser(command: str, *, with_files: bool) -> tuple[ArgumentParser, list[str]]:
    """The parser of a command's own options, and the names of those that the data module takes."""
    parser = ArgumentParser(
        prog=f"lit-ift data {command}",
        usage=f"lit-ift data {command} FILE... --tokenizer ID [options]\n"
        f"       lit-ift data {command} --config FILE [options] [--data.init_args.KEY VALUE ...]",
        description=COMMANDS[command].__doc__,
        exit_on_error=False,
        allow_abbrev=False,
    )
    if command == "check":
        parser.add_class_arguments(CheckOutput)
        parser.add_class_arguments(Thresholds)
    elif command == "preview":
        parser.add_class_arguments(PreviewOutput)
        parser.add_argument("--batch", action="store_true", help="show the first batch, with its padding")
        parser.add_argument("--tokens", action="store_true", help="show the borders of tokens and their ids")
    elif with_files:
        parser.add_argument("--split", type=str | None, help="which split of sources that have several")
    of_module: list[str] = []
    if with_files:
        skip = NOT_FOR_FILES | ({"seed"} if command == "preview" else set())
        of_module = parser.add_class_arguments(InstructionDataModule, skip=skip)
        if command != "build":
            help_text = "lowest and highest score of scored rows, such as [1, 10]; [0, 1] if it is not given"
            parser.add_argument("--score_range", type=tuple[float, float] | None, help=help_text)
            of_module.append("score_range")
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


def _belongs_to_configuration(name: str) -> bool:
    return name in CONFIG_OPTIONS or name in OF_CONFIGURATION or "." in name


def _of_module(word: str) -> str:
    """The option ``--columns`` as it is written beside a configuration; any other word as it is."""
    name, equals, value = word.partition("=")
    return f"--data.init_args.columns{equals}{value}" if name == "--columns" else word


def _check_known(parser: ArgumentParser, words: Sequence[str]) -> None:
    known = {option for action in parser._actions for option in action.option_strings}
    for name, _ in _sort(words)[1]:
        if name.rstrip("+") in known:
            continue
        hint = f".{did_you_mean(name, known)}"
        if _belongs_to_configuration(name):
            hint = ". Such options change a configuration: name one with --config."
        raise ArgumentError(None, f"unknown option {name}{hint}\n`{parser.prog} --help` lists the options.")


def _split_of(module: ConversationDataModule, name: str | None) -> Split | None:
    for split in SPLITS:
        if split == name and module.has_split(split):
            return split
    if name is None:
        return None
    there = ", ".join(split for split in SPLITS if module.has_split(split))
    raise UserError(f"--split={name}: the data module has no such split. It has {there}.")


def _set_up(call: Call) -> dict[str, DataReport]:
    """Read and encode the rows; reports by split, also of a split without any usable row."""
    module = call.data_module
    wanted = [split for split in SPLITS if module.has_split(split) and call.split in (None, split)]
    reports: dict[str, DataReport] = {}
    report_logger.disabled = True  # Its lines would say twice what the table says.
    try:
        for stage, splits in sorted(STAGE_SPLITS.items(), key=lambda item: len(item[1])):
            if any(split in wanted and split not in reports for split in splits):
                try:
                    module.setup(stage)
                except NoUsableRowError as error:  # The other splits are still to be looked at.
                    reports[error.report.split] = error.report
                reports |= module.reports
    finally:
        report_logger.disabled = False
    return {split: reports[split] for split in wanted}


def _about(module: ConversationDataModule, splits: Sequence[Any]) -> About:
    tokenizer, source = module.tokenizer, module.tokenizer_source
    template, chosen = tokenizer.chat_template, module.hparams.get("chat_template")
    digest = hashlib.sha256(str(template).encode()).hexdigest()[:12]
    name = "none" if template is None else "the tokenizer's own" if chosen is None else _one_line(chosen)
    return About(
        sources={split: [part.name for part in module.parts(split)] for split in splits},
        tokenizer=source if isinstance(source, str) else str(tokenizer.name_or_path) or type(tokenizer).__name__,
        chat_template=name if template is None else f"{name}, {len(str(template)):,} characters, sha256 {digest}…",
        lit_ift=version("lit-ift"),
        date=datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
    )


def _one_line(template: str) -> str:
    """A template's name or file, or that it was given as text."""
    return template if "\n" not in template and "{" not in template else "given as text"


@contextmanager
def _skipped_rows(path: Path | None) -> Iterator[Callable[[str, RowError], None] | None]:
    """Writes a line to the file for each skipped row that it is told of."""
    if path is None:
        yield None
        return
    html.write_page(path, "")
    with path.open("w", encoding="utf-8") as file:

        def tell(split: str, error: RowError) -> None:
            told = {"row_id": error.origin, "split": split, "reason": error.reason, "field": error.field}
            file.write(json.dumps({**told, "problem": error.problem, "remedy": error.remedy}) + "\n")

        yield tell


def _pick(kind: type[T], options: Namespace) -> T:
    return kind(**{field.name: options[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else NOT_A_TERMINAL)
