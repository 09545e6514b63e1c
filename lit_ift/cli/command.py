"""The ``lit-ift`` command: picks the subcommand before anything heavy is imported."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser

TRAINER_COMMANDS = {
    "fit": "train a model",
    "validate": "measure a model on the validation data",
    "test": "measure a model on the test data",
    "predict": "let a model answer the prompts of the predict data",
}

MODEL_COMMANDS = {
    "export": "write the model of a checkpoint as a Hugging Face folder",
    "merge": "make a whole model of a LoRA adapter and its base model",
}

_DTYPES = ("float32", "bfloat16", "float16", "float64")

LAKE_COMMANDS = {"frozen-lake": "compare objectives on the game of the IFT paper, whose optimum is known"}

DATA_COMMANDS = {
    "check": "say what became of every row; fail if a threshold is exceeded",
    "preview": "print rows in colour: what is trained on, prompt, padding",
    "build": "tokenize all splits into the cache, so that training finds them there",
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
  lit-ift data check --config configs/ift/smollm2-135m.yaml
  lit-ift export checkpoints/runs/version_0/checkpoints/last.ckpt model
  lit-ift merge checkpoints/runs/version_0/model merged
  lit-ift frozen-lake --config configs/frozen-lake/default.yaml

`lit-ift COMMAND --help` lists a command's options.
"""

_DATA_HELP = """\
usage: lit-ift data COMMAND FILE... --tokenizer ID [options]
       lit-ift data COMMAND --config FILE [options]

Look at the data before it is trained on. No model is loaded.

commands:
{commands}

examples:
  lit-ift data check my.jsonl --tokenizer HuggingFaceTB/SmolLM2-135M-Instruct --max_skipped 0
  lit-ift data check --config configs/ift/smollm2-135m.yaml --html report.html
  lit-ift data preview --config configs/ift/smollm2-135m.yaml --batch

`lit-ift data COMMAND --help` lists a command's options.
"""


def help_text() -> str:
    """The top-level help."""
    look = {"data": f"look at the data first: {', '.join(DATA_COMMANDS)}"}
    commands = {**TRAINER_COMMANDS, **MODEL_COMMANDS, **look, **LAKE_COMMANDS}
    return _HELP.format(commands=_listed(commands))


def data_help_text() -> str:
    """The help of ``lit-ift data``."""
    return _DATA_HELP.format(commands=_listed(DATA_COMMANDS))


def _listed(commands: Mapping[str, str]) -> str:
    return "\n".join(f"  {name:<11} {text}" for name, text in commands.items())


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
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text(), end="")
        return 0
    if words[0] in ("--version", "version"):
        from importlib.metadata import version

        print(f"lit-ift {version('lit-ift')}")
        return 0
    if words[0] == "data":
        return _run_data_command(words[1:])
    if words[0] == "merge":
        return _run_merge(words[1:])
    if words[0] == "export":
        return _run_export(words[1:])
    if words[0] in LAKE_COMMANDS:
        return _run_lake(words[1:])
    if words[0] not in TRAINER_COMMANDS:
        return _unknown_command("lit-ift", words[0], [*TRAINER_COMMANDS, *MODEL_COMMANDS, "data", *LAKE_COMMANDS])
    return _run_trainer_command(words)


def make_folder_importable() -> None:
    """Let configurations name classes of the current folder, as ``python -m`` does; installed packages come first."""
    folder = os.getcwd()
    if folder not in sys.path and not sys.flags.safe_path:
        sys.path.append(folder)


def _unknown_command(program: str, word: str, known: Iterable[str]) -> int:
    from lit_ift.errors import did_you_mean

    names = list(known)
    hint = did_you_mean(word, names)
    print(f"{program}: error: unknown command '{word}'.{hint} Commands: {', '.join(names)}", file=sys.stderr)
    return 2


def _run_data_command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(data_help_text(), end="")
        return 0
    if words[0] not in DATA_COMMANDS:
        return _unknown_command("lit-ift data", words[0], DATA_COMMANDS)

    from lit_ift.cli.data import run

    return _told(f"lit-ift data {words[0]}", lambda: run(words))


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


def _run_lake(words: list[str]) -> int:
    from lit_ift.frozen_lake.command import run

    return _told("lit-ift frozen-lake", lambda: run(words))


def _run_merge(words: list[str]) -> int:
    options = merge_parser().parse_args(words)
    from pathlib import Path

    from lit_ift.export.merge import merge_adapter

    def merge() -> int:
        figures = merge_adapter(Path(options.adapter), Path(options.output), base=options.model, dtype=options.dtype)
        print(
            f"{options.output}: {figures['dtype']} weights; logits differ from those of the adapter on its base model "
            f"by {figures['max_abs_logit_diff']:.1e} before they are stored"
        )
        return 0

    return _told("lit-ift merge", merge)


def merge_parser() -> "ArgumentParser":
    """The options of ``lit-ift merge``."""
    from argparse import ArgumentParser

    parser = ArgumentParser(
        prog="lit-ift merge",
        allow_abbrev=False,
        description="Merge a LoRA adapter into its base model and write a whole Hugging Face model.",
    )
    parser.add_argument("adapter", metavar="ADAPTER_FOLDER", help="as a run with model.lora exports it")
    parser.add_argument("output", metavar="OUTPUT", help="folder to write; must not exist or be empty")
    parser.add_argument("--model", metavar="BASE", help="base model, if it is not where the adapter says")
    parser.add_argument(
        "--dtype", choices=_DTYPES, help="of the written weights; that of the base model's checkpoint by default"
    )
    return parser


def _run_export(words: list[str]) -> int:
    options = export_parser().parse_args(words)
    from pathlib import Path

    from lit_ift.export.from_checkpoint import export_checkpoint

    def export() -> int:
        figures = export_checkpoint(
            Path(options.checkpoint),
            Path(options.output),
            config=None if options.config is None else Path(options.config),
            model=options.model,
            tokenizer=options.tokenizer,
            dtype=options.dtype,
            max_shard_size=options.max_shard_size,
            merge=options.merge,
            trust_remote_code=options.trust_remote_code,
        )
        what = "LoRA adapter" if figures["is_adapter"] else "Hugging Face model"
        print(
            f"{options.output}: {what} of step {figures['step']}, {figures['dtype']} weights (loaded again: logits "
            f"differ by at most {figures['max_abs_logit_diff']:.1e}, template ids equal: "
            f"{figures['template_ids_equal']})"
        )
        return 0

    return _told("lit-ift export", export)


def export_parser() -> "ArgumentParser":
    """The options of ``lit-ift export``."""
    from argparse import ArgumentParser

    parser = ArgumentParser(
        prog="lit-ift export",
        allow_abbrev=False,
        description="Write the model of a training checkpoint as a Hugging Face folder, and compare the two. Of a run "
        "with model.lora it is an adapter's folder. It takes one process, no GPU, and memory for the largest weight.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=".ckpt file, or folder of shards")
    parser.add_argument("output", metavar="OUTPUT", help="folder to write; must not exist or be empty")
    parser.add_argument("--config", help="configuration of the run; config.yaml in its folder by default")
    parser.add_argument("--model", help="what the run started from, if it is not where the checkpoint says")
    parser.add_argument("--tokenizer", help="if it is not where the checkpoint says")
    parser.add_argument("--dtype", choices=_DTYPES, help="of the written weights; that of the checkpoint by default")
    parser.add_argument("--max_shard_size", metavar="SIZE", help="of a file of a model's weights, such as 5GB")
    parser.add_argument(
        "--merge", action="store_true", help="merge an adapter into its base model, which is held in memory as a whole"
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that the model brings")
    return parser


def _run_trainer_command(words: list[str]) -> int:
    from argparse import ArgumentError

    from lit_ift.cli.help import name_class_of_help
    from lit_ift.cli.training import LitIFTCLI, explain_argument_error

    words = name_class_of_help(words)
    # Lightning reads the command line again where it launches further processes.
    sys.argv = [sys.argv[0], *words]

    def run() -> int:
        try:
            LitIFTCLI.run()
        except ArgumentError as error:
            raise ArgumentError(None, explain_argument_error(error, words[0])) from error
        return 0

    return _told(f"lit-ift {words[0]}", run)


if __name__ == "__main__":
    sys.exit(main())
