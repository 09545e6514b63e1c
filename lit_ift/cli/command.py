"""The ``lit-ift`` command: finds the subcommand before anything heavy is imported."""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Final, NamedTuple

HELP: Final = ("-h", "--help", "help")
HELP_TEXTS: Final = Path(__file__).with_name("help_texts")
"""What ``--help`` prints: the parsers' own help, written by docs/write_help.py, because making them takes seconds."""


class Command(NamedTuple):
    """A command of the tree, or a group of commands.

    Args:
        text: what it does, in a line.
        module: where its ``run`` is, in this package; None for a group.
    """

    text: str
    module: str | None

    @property
    def sentence(self) -> str:
        """The text as a sentence."""
        return f"{self.text[0].upper()}{self.text[1:]}."


COMMANDS: Final = {
    "fit": Command("train a model", "training"),
    "validate": Command("measure a model on the validation data", "training"),
    "test": Command("measure a model on the test data", "training"),
    "predict": Command("let a model answer the prompts of the predict data", "training"),
    "export": Command("write the model of a checkpoint as a Hugging Face folder", "models"),
    "merge": Command("make a whole model of a LoRA adapter and its base model", "models"),
    "chat": Command("talk to a trained model on the terminal, and compare it with its base", "talk"),
    "generate": Command("let a trained model answer the prompts of a file", "talk"),
    "report": Command("show on a page what a run did: data, curves, scores, answers, changed tokens", "report"),
    "inspect": Command("show what a model says of each token of some rows, as a page", "report"),
    "eval": Command("score models on tasks, with standard errors and paired differences", "evaluate"),
    "compare": Command("compare objectives fairly: rates, seeds, intervals, cost", "compare"),
    "plan": Command("say what a run takes before it begins: steps, FLOPs, memory, time, what fits", "plan"),
    "data": Command("look at the data first: check, preview, build", None),
    "data check": Command("say what became of every row; fail if a threshold is exceeded", "data"),
    "data preview": Command("print rows in colour: what is trained on, prompt, padding", "data"),
    "data build": Command("tokenize all splits into the cache, so that training finds them there", "data"),
    "recipes": Command("show the configurations that come with lit-ift: list, show, copy", None),
    "recipes list": Command("list them with what they do", "recipes"),
    "recipes show": Command("print one", "recipes"),
    "recipes copy": Command("copy one, to change it", "recipes"),
    "schema": Command("print the JSON schema of configurations, for editors", "recipes"),
    "completion": Command("print a script that completes commands and options in a shell", "recipes"),
    "frozen-lake": Command("compare objectives on the game of the IFT paper, whose optimum is known", "lake"),
}
"""All commands by the words that call them."""

TRAINER_COMMANDS: Final = tuple(name for name, command in COMMANDS.items() if command.module == "training")


def help_file(name: str) -> Path:
    """Where the help of a command, of a group, or of ``lit-ift`` itself (an empty name) stands."""
    return HELP_TEXTS / f"{name.replace(' ', '-') or 'lit-ift'}.txt"


def command_first(argv: Sequence[str]) -> list[str]:
    """Put the subcommand in front of options that were written before it, as in ``--config FILE fit``."""
    for position, word in enumerate(argv):
        if word in TRAINER_COMMANDS and all(
            part.startswith("-") or argv[i - 1] in ("--config", "-c") for i, part in enumerate(argv[:position])
        ):
            return [word, *argv[:position], *argv[position + 1 :]]
    return list(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 done, 1 the run failed, 2 the call was wrong."""
    words = command_first(sys.argv[1:] if argv is None else argv)
    make_folder_importable()
    if words[:1] in (["--version"], ["version"]):
        from importlib.metadata import version

        print(f"lit-ift {version('lit-ift')}")
        return 0
    group = words[0] if words and words[0] in COMMANDS and COMMANDS[words[0]].module is None else ""
    rest = words[1:] if group else words
    if not rest or rest[0] in HELP:
        print(help_file(group).read_text(encoding="utf-8"), end="")
        return 0
    name = f"{group} {rest[0]}".strip()
    if name not in COMMANDS:
        return _unknown_command(group, rest[0])
    if {"-h", "--help"} & set(rest):
        print(help_file(name).read_text(encoding="utf-8"), end="")
        return 0
    from lit_ift.recipes import with_files

    module = import_module(f"lit_ift.cli.{COMMANDS[name].module}")
    return _told(f"lit-ift {name}", lambda: module.run(with_files(words)))


def make_folder_importable() -> None:
    """Let configurations name classes of the current folder, as ``python -m`` does; installed packages come first."""
    folder = os.getcwd()
    if folder not in sys.path and not sys.flags.safe_path:
        sys.path.append(folder)


def _unknown_command(group: str, word: str) -> int:
    from lit_ift.errors import did_you_mean

    names = [last for above, _, last in (name.rpartition(" ") for name in COMMANDS) if above == group]
    program = f"lit-ift {group}".strip()
    hint = did_you_mean(word, names)
    print(f"{program}: error: unknown command '{word}'.{hint} Commands: {', '.join(names)}", file=sys.stderr)
    return 2


def _told(program: str, run: Callable[[], int]) -> int:
    """The exit code of a command; what the user can mend is printed without a traceback."""
    from argparse import ArgumentError

    from lit_ift.errors import UserError

    try:
        return run()
    except ArgumentError as error:
        print(f"{program}: error: {str(error).strip()}", file=sys.stderr)
        return 2
    except UserError as error:
        if os.environ.get("LIT_IFT_TRACEBACK"):
            raise
        print(f"{program}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: stopped by Ctrl-C", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
