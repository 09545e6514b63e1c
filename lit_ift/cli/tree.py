"""The tree of commands as one parser. A call makes the options of its own command alone, which is what takes time."""

from argparse import Action, ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from jsonargparse._typehints import type_to_str

from lit_ift.cli.command import COMMANDS
from lit_ift.cli.explain import explained, nearest_options

P = TypeVar("P", bound=ArgumentParser)

DESCRIPTIONS: Final = {
    "": "Single-process alignment of language models in PyTorch Lightning.",
    "data": "Look at the data before it is trained on. No model is loaded.",
    "recipes": "Configurations that come with lit-ift. `--config` takes their names.",
}
EXAMPLES: Final = {
    "": """\
examples:
  lit-ift fit --config quickstart
  lit-ift fit --config ift/smollm2-135m --model.lam 0.3
  lit-ift fit --config ift/smollm2-135m --print_config
  lit-ift plan ift/smollm2-135m
  lit-ift data check --config ift/smollm2-135m
  lit-ift export checkpoints/runs/version_0/checkpoints/last.ckpt model
  lit-ift merge checkpoints/runs/version_0/model merged
  lit-ift chat checkpoints/runs/version_0
  lit-ift generate checkpoints/runs/version_0 questions.jsonl answers.jsonl
  lit-ift eval checkpoints/runs/version_0 --tasks gsm8k=test.jsonl
  lit-ift inspect HuggingFaceTB/SmolLM2-135M-Instruct my.jsonl
  lit-ift compare study/quickstart
  lit-ift report checkpoints/runs/version_0
  lit-ift frozen-lake --config frozen-lake/default
""",
    "data": """\
examples:
  lit-ift data check my.jsonl --tokenizer HuggingFaceTB/SmolLM2-135M-Instruct --max_skipped 0
  lit-ift data check --config ift/smollm2-135m --html report.html
  lit-ift data preview --config ift/smollm2-135m --batch
""",
    "recipes": """\
examples:
  lit-ift recipes list
  lit-ift recipes show ift/smollm2-135m
  lit-ift recipes copy ift/smollm2-135m mine.yaml
""",
}


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Shows types and defaults, and keeps the lines of examples."""

    def _get_type_str(self, action: Action) -> str | None:
        hint = getattr(action, "_typehint", None) or getattr(action, "type", None)
        found: str | None = super()._get_type_str(action) if hint is None else type_in_words(hint)
        return found


def type_in_words(hint: Any) -> str:
    """A type as help shows it: ``int at least 1 | null`` for ``Optional[Annotated[int, Range(ge=1)]]``."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(map(type_in_words, args)))
    if origin is Literal:
        return " | ".join("null" if value is None else str(value) for value in args)
    if origin is Annotated:
        return " ".join([type_in_words(args[0]), *map(str, args[1:])])
    return {Path: "path", NoneType: "null"}.get(hint) or str(type_to_str(hint))  # type: ignore[no-untyped-call]


_PARSER_ALONE: Final[ContextVar[bool]] = ContextVar("parser_alone", default=False)


class ParserMade(BaseException):
    """Ends a command of which the parser alone is wanted."""

    def __init__(self, parser: ArgumentParser) -> None:
        self.parser = parser


@contextmanager
def parser_alone() -> Iterator[None]:
    """Commands end by `ParserMade` where they ask for the tree, before they read their words."""
    token = _PARSER_ALONE.set(True)
    try:
        yield
    finally:
        _PARSER_ALONE.reset(token)


def tree(kind: type[P], parsers: Mapping[str, ArgumentParser]) -> P:
    """All commands; those of `parsers` with the options of their parser, the others with a line of help.

    Raises:
        ParserMade: within `parser_alone`.
    """
    if _PARSER_ALONE.get():
        raise ParserMade(next(iter(parsers.values())))
    root = kind(prog="lit-ift", formatter_class=HelpFormatter, exit_on_error=False, allow_abbrev=False)
    groups = {"": _group(root, "")}
    for path, command in COMMANDS.items():
        above, _, word = path.rpartition(" ")
        own = parsers.get(path) or ArgumentParser()
        groups[above].add_subcommand(word, own, help=command.text)
        own.prog = f"lit-ift {path}"
        if command.module is None:
            groups[path] = _group(own, path)
    return root


def _group(parser: ArgumentParser, path: str) -> Any:
    """Where the commands of a group are added."""
    program = f"lit-ift {path}".strip()
    parser.usage = f"{program} COMMAND [options]"
    parser.description, parser.epilog = DESCRIPTIONS[path], EXAMPLES[path]
    about = f"`{program} COMMAND --help` lists a command's options."
    return parser.add_subcommands(title="commands", description=about, metavar="COMMAND", help=" ")


def add_options(parser: ArgumentParser, source: Callable[..., object], *, several: Collection[str] = ()) -> None:
    """Add the options of a function or class, explained by its docstring: positional if required, flags if False.

    Args:
        parser: gets them.
        source: the function or class.
        several: its parameters that are lists of one word or more: the first ones, or required options.
    """
    parameters = signature(source).parameters
    flags: set[str | int] = {option.name for option in parameters.values() if option.default is False}
    explanations = docstring_parser.parse(source.__doc__ or "").params
    for option in explanations:
        if option.arg_name in several:
            is_option = parameters[option.arg_name].kind is Parameter.KEYWORD_ONLY
            more: dict[str, Any] = {"required": True} if is_option else {}
            name = f"--{option.arg_name}" if is_option else option.arg_name
            parser.add_argument(name, nargs="+", help=option.description, **more)
    add = parser.add_class_arguments if isinstance(source, type) else parser.add_function_arguments
    add(source, as_group=False, as_positional=True, skip=flags | set(several))
    for option in explanations:
        if option.arg_name in flags:
            parser.add_argument(f"--{option.arg_name}", action="store_true", help=option.description)


def function_parser(function: Callable[..., object], *, several: Collection[str] = ()) -> ArgumentParser:
    """The options of a command that is a function; see `add_options`."""
    parser = ArgumentParser(description=docstring_parser.parse(function.__doc__ or "").description)
    add_options(parser, function, several=several)
    return parser


def parse(words: Sequence[str], name: str, parser: ArgumentParser) -> Namespace:
    """The options of a command.

    Args:
        words: the command line from the command on.
        name: of the command.
        parser: of its options.

    Raises:
        argparse.ArgumentError: an option is unknown or has a wrong value; with the option that may have been meant.
    """
    try:
        parsed = tree(ArgumentParser, {name: parser}).parse_args(list(words))
    except ArgumentError as error:
        options = {option for action in parser._actions for option in action.option_strings}
        hints = partial(nearest_options, options=options)
        raise explained(error, name, hints, prints_config="--print_config" in options) from error
    for word in name.split():
        parsed = parsed[word]
    return parsed
