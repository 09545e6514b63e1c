"""``lit-ift inspect`` and ``lit-ift report``: pages that show what a model says of each token, and what a run did."""

from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from lit_ift.cli.talk import Dtype
from lit_ift.cli.tree import function_parser, parse
from lit_ift.errors import told_as
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


FUNCTIONS: Final[dict[str, Callable[..., None]]] = {"inspect": inspect}


def run(words: Sequence[str]) -> int:
    """Run ``inspect`` or ``report``, given from there on, and return 0.

    Raises:
        argparse.ArgumentError: the call is wrong.
        UserError: the model, the rows or the run cannot be used, or the page cannot be written.
    """
    function = FUNCTIONS[words[0]]
    values = vars(parse(words, words[0], function_parser(function)))
    with told_as(ValueError, lambda error: ArgumentError(None, str(error))):
        check_options(function, values, prefix="--")
    function(**values)
    return 0
