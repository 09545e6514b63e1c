"""The ``lit-ift`` command: picks the subcommand before anything heavy is imported."""

import os
import sys
from collections.abc import Sequence

TRAINER_COMMANDS = {
    "fit": "train a model",
    "validate": "measure a model on the validation data",
    "test": "measure a model on the test data",
    "predict": "let a model answer the prompts of the predict data",
}

_HELP = """\
usage: lit-ift COMMAND [options]

Single-process alignment of language models in PyTorch Lightning.

commands:
{commands}

examples:
  lit-ift fit --config configs/quickstart.yaml
  lit-ift fit --config configs/ift/smollm2-135m.yaml --model.init_args.lam 0.3
  lit-ift fit --config configs/ift/smollm2-135m.yaml --print_config

`lit-ift COMMAND --help` lists a command's options.
"""


def help_text() -> str:
    """The top-level help."""
    commands = "\n".join(f"  {name:<10} {text}" for name, text in TRAINER_COMMANDS.items())
    return _HELP.format(commands=commands)


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
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text(), end="")
        return 0
    if words[0] in ("--version", "version"):
        from importlib.metadata import version

        print(f"lit-ift {version('lit-ift')}")
        return 0
    if words[0] not in TRAINER_COMMANDS:
        from difflib import get_close_matches

        close = get_close_matches(words[0], TRAINER_COMMANDS, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        known = ", ".join(TRAINER_COMMANDS)
        print(f"lit-ift: error: unknown command '{words[0]}'.{hint} Commands: {known}", file=sys.stderr)
        return 2
    return _run_trainer_command(words)


def _run_trainer_command(words: list[str]) -> int:
    from argparse import ArgumentError

    from lit_ift.errors import UserError
    from lit_ift.lightning_cli import LitIFTCLI, explain_argument_error

    # Lightning reads the command line again where it launches further processes.
    sys.argv = [sys.argv[0], *words]
    try:
        LitIFTCLI.run()
    except ArgumentError as error:
        print(f"lit-ift {words[0]}: error: {explain_argument_error(error, words[0])}", file=sys.stderr)
        return 2
    except UserError as error:
        if os.environ.get("LIT_IFT_TRACEBACK"):
            raise
        print(f"lit-ift {words[0]}: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
