"""``lit-ift inspect`` and ``lit-ift report``: pages that show what a model says of each token, and what a run did."""

import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from jsonargparse import ArgumentParser

from lit_ift.cli.talk import Dtype
from lit_ift.cli.tree import function_parser, parse
from lit_ift.errors import UserError, told_as
from lit_ift.options import PositiveInt, UnitInterval, check_options


def inspect(
    trained: str,
    rows: str,
    *,
    output: Path = Path("inspect.html"),
    overwrite: bool = False,
    alone: bool = False,
    max_rows: PositiveInt = 20,
    max_length: PositiveInt = 1024,
    lam: UnitInterval = 0.2,
    gamma: UnitInterval = 0.95,
    split: str | None = None,
    layout: str | None = None,
    columns: dict[str, str | None] | None = None,
    batch_size: PositiveInt = 4,
    model: str | None = None,
    dtype: Dtype | None = None,
    device: str | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Show rows with each token coloured by what a model says of it, on one HTML page.

    Of instruction rows it shows what IFT would do with them: what the model intuits, and what each token counts for. Of
    pairs it shows the share of each token in the margin. A trained model is compared with the one that it started from.

    Args:
        trained: folder of a run, an export or an adapter, a checkpoint, a GGUF file, or a hub id.
        rows: rows of any data format, of a file, a folder, a pattern or a hub id.
        output: HTML file to write.
        overwrite: replace the output.
        alone: do not compare the model with the one that it started from.
        max_rows: show the first so many rows.
        max_length: longest row in tokens; longer ones lose their end.
        lam: λ, the share of the prediction in IFT's input.
        gamma: decay of IFT's propagation.
        split: of rows that have several splits.
        layout: of the rows; recognised by the columns by default.
        columns: what columns are, where their names do not say it, as in '{prompt: Question}'.
        batch_size: rows read at a time.
        model: what training started from, if it is not where the run, the adapter or the card says.
        dtype: of the weights; that of the files by default.
        device: such as cuda or cpu; a GPU by default if there is one.
        chat_template: chatml, zephyr, a file or jinja text, for a model that has none.
        trust_remote_code: run the code that the model brings.
    """
    from lit_ift.data.read.sources import Source
    from lit_ift.data.report.html import write_page
    from lit_ift.generation.find import find_model
    from lit_ift.generation.opened import LoadOptions, opened
    from lit_ift.modules import IFTModule
    from lit_ift.run_report.inspect import check_output, encoded_rows, has_base, inspected
    from lit_ift.run_report.objective import Objective

    check_output(output, overwrite=overwrite)
    place = find_model(trained)
    if alone and model is not None and place.kind == "model":
        raise UserError("--alone leaves out the model that --model names. Leave one of the two out.")
    source = Source(rows, max_rows=max_rows, split=split, layout=layout, columns=columns)
    with opened(place, LoadOptions(model, dtype, device, chat_template, trust_remote_code)) as found:
        page = inspected(
            found,
            encoded_rows(found, source, max_length=max_length),
            Objective(IFTModule, {"lam": lam, "gamma": gamma}),
            name=rows,
            compares=not alone and has_base(place, model),
            batch_size=batch_size,
        )
    write_page(output, page.html())
    print(f"{output}: open it in a browser")


def report(
    runs: list[str],
    *,
    output: Path | None = None,
    overwrite: bool = False,
    results: list[Path] | None = None,
    rows: str | None = None,
    max_rows: PositiveInt = 20,
    max_length: PositiveInt | None = None,
    batch_size: PositiveInt = 4,
    model: str | None = None,
    dtype: Dtype | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Show what a run did on one HTML page: configuration, data, curves, scores, answers, and tokens of held-out rows.

    Tokens are coloured by how training changed them. Of several runs, such as seeds, the curves are a mean in a band,
    and what differs in their configurations is listed; all else is of the first.

    Args:
        runs: folders of runs; the first is shown.
        output: HTML file to write; report.html in the run's folder by default, which is then replaced.
        overwrite: replace the output.
        results: files of lit-ift eval to show besides those in the folders of the runs.
        rows: rows to show in the place of held-out ones, in any data format.
        max_rows: show the first so many rows.
        max_length: longest of the rows that are named by rows, in tokens; 1024 by default.
        batch_size: rows read at a time.
        model: what training started from, if it is not where the run says.
        dtype: of the weights; that of the files by default.
        device: such as cuda or cpu; a GPU by default if there is one.
        trust_remote_code: run the code that the model brings.
    """
    from lit_ift.data.modules.conversation import ConversationDataModule
    from lit_ift.data.report.html import write_page
    from lit_ift.generation.opened import LoadOptions
    from lit_ift.run_report.inspect import check_output
    from lit_ift.run_report.report import ReportOptions, report
    from lit_ift.run_report.run_files import Run

    if rows is None and max_length is not None:
        raise UserError("--max_length says nothing of held-out rows, which are as they were trained. Name --rows too.")
    found = [Run.find(name) for name in runs]
    folders = [run.folder.resolve() for run in found]
    if twice := next((runs[i] for i, folder in enumerate(folders) if folder in folders[:i]), None):
        raise UserError(f"The run {twice} is named twice. Name it once.")
    path = found[0].folder / "report.html" if output is None else output
    check_output(path, overwrite=overwrite or output is None)

    def data() -> ConversationDataModule:
        from lit_ift.cli.data_configuration import load

        with told_as(ArgumentError, lambda error: UserError(f"{found[0].config_file}: {error}")):
            return load(["--config", str(found[0].config_file)], skip_bad_rows=False)

    load = LoadOptions(model, dtype, device, trust_remote_code=trust_remote_code)
    options = ReportOptions(rows, max_rows, max_length or 1024, batch_size, results or [], load)
    page, problems = report(found, data, options)
    write_page(path, page.html())
    for problem in problems:
        print(f"missing in the report: {problem}", file=sys.stderr)
    print(f"{path}: open it in a browser")


FUNCTIONS: Final[dict[str, Callable[..., None]]] = {"inspect": inspect, "report": report}


def parser_of(name: str) -> ArgumentParser:
    """The options of a command."""
    return function_parser(FUNCTIONS[name], several=["runs"] if name == "report" else ())


def run(words: Sequence[str]) -> int:
    """Run ``inspect`` or ``report``, given from there on, and return 0.

    Raises:
        argparse.ArgumentError: the call is wrong.
        UserError: the model, the rows or the run cannot be used, or the page cannot be written.
    """
    function = FUNCTIONS[words[0]]
    values = vars(parse(words, words[0], parser_of(words[0])))
    with told_as(ValueError, lambda error: ArgumentError(None, str(error))):
        check_options(function, values, prefix="--")
    function(**values)
    return 0
