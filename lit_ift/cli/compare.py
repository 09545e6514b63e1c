"""``lit-ift compare``: carry out a study, or say how, and write its report."""

from collections.abc import Sequence
from pathlib import Path

from lit_ift import recipes
from lit_ift.cli.composed import composed
from lit_ift.cli.console import table_console
from lit_ift.cli.tree import function_parser, parse
from lit_ift.errors import UserError
from lit_ift.study.plan import Plan
from lit_ift.study.report import print_report, write_report
from lit_ift.study.runner import carry_out, in_processes, printed, unfinished
from lit_ift.study.study_file import read_study


def compare(study: str, *, output: str | None = None, dry_run: bool = False) -> None:
    """Compare variants of a training at their best learning rates, over several seeds, and report what came out.

    Args:
        study: YAML file or recipe with config, variants, rates and seeds; see docs/compare.md.
        output: folder for results and report; studies/<name of the file> by default.
        dry_run: check everything, print the commands of the runs that can be done next, and run nothing.
    """
    path = Path(study) if Path(study).exists() else recipes.find(study)
    described = read_study(path)
    folder = Path(output or described.output or Path("studies") / path.stem)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output={folder} is a file. Name a folder.")
    plan = Plan(described, folder, composed)
    if dry_run:
        for run in unfinished(described, plan):
            print(printed(described, run))
        return
    console = table_console(160)
    launch_all = in_processes(described)
    if described.slurm is not None:
        from lit_ift.study.slurm import as_jobs

        launch_all = as_jobs(described, folder)
    summary = carry_out(described, plan, launch_all, console)
    print_report(summary, console)
    for file in write_report(summary, folder, f"Study {path.stem}"):
        console.print(str(file), soft_wrap=True, markup=False)


def run(words: Sequence[str]) -> int:
    """Run ``compare``, given from there on, and return 0.

    Raises:
        argparse.ArgumentError: the call, or an option that the study names, is wrong.
        UserError: the study cannot be used, or runs failed.
    """
    compare(**vars(parse(words, "compare", function_parser(compare))))
    return 0
