"""Write what docstrings and the registries of losses say already: a page for each objective, and tables of these.

Run: python docs/write_objectives.py
"""

import csv
import inspect
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from objective_pages import FOLDER, files, objectives

from lit_ift.losses import PAIR_LOSSES, TOKEN_LOSSES
from lit_ift.losses.marks import is_in_batch

PAGE = Path(__file__).with_name("objectives.md")
RUNS = Path(__file__).with_name("short_runs.csv")
"""What `benchmarks/objectives.py` wrote."""
PARITY = Path(__file__).with_name("parity.csv")
"""What `write_parity.py` wrote."""

CHECKED_OTHERWISE = {
    "ada_dpo": "by hand; a grid over τ",
    "cayley": "`floor` 1 is `deformed_log` with α = 1",
    "gdpo": "by hand; p̂ = 1 is DPO",
    "gipo": "by hand; p̂ = 1 is IPO",
    "sft": "as `nll`; five steps of TRL's `SFTTrainer` in float32, 2e-7 (`tests/integration/test_as_trl.py`)",
    "sftmix": "by hand; there is no code of the authors",
}
"""Objectives by the name of their page that no recorded numbers were made for, and what was done instead."""

REMARKS = {
    ("bco", "OpenGVLab/InternVL 2410d1d"): "as a term of MPO, given their shift",
    ("exo", "TRL 1.16.0"): "but for TRL's two logarithms in float32",
    ("kto", "huggingface/trl f2cd577"): "`variant: bco`, given their shift",
    ("kto", "TRL 1.16.0"): "its baseline has float32's rounding; 2e-16 where that is 0",
    ("mpo", "OpenGVLab/InternVL 2410d1d"): "with `sft_token_mean`, as their code",
    ("mpo", "TRL 1.16.0"): "with `bco_pair` and `sft_token_mean`, as TRL",
    ("rpo", "yinyueqin/relative-preference-optimization c1b5163"): "`reduction: mean`",
    ("tis_dpo", "exlaw/TIS-DPO cbad7c1"): "weights given",
}


def loss_table(losses: Mapping[str, Callable[..., Any]]) -> str:
    """A line for each loss: name with a link to its page, summary and value, paper."""
    page_of = {objective.schema: page for page, objective in objectives().items()}
    lines = ["| `loss` | what it is | paper |", "| --- | --- | --- |"]
    for name, function in losses.items():
        doc = inspect.getdoc(function) or ""
        summary = re.sub(r" \([^)]*arXiv:[^)]*\)", "", doc.split("\n\n")[0]).replace("\n", " ")
        found = re.search(r"``(loss.*?)``", doc, re.DOTALL)
        value = f"<br>`{_one_line(found[1])}`" if found else ""
        cells = [
            f"[`{name}`](objectives/{page_of[inspect.unwrap(function)]}.md)",
            _one_line(summary).replace("``", "`") + (" *In-batch.*" if is_in_batch(function) else "") + value,
            _papers(doc),
        ]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines)


def run_table() -> str:
    """A line for each short run; the accuracy of pairs, or the nll where it is not the loss itself."""
    lines = [
        "| objective | rows | steps | loss before | after | nll before | after | accuracy before | after |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    with RUNS.open(newline="", encoding="utf-8") as file:
        for run in csv.DictReader(file):
            names = [f"{measure}_{when}" for measure in ("loss", "nll", "accuracy") for when in ("before", "after")]
            digits = ["2f" if name.startswith("accuracy") else "3f" for name in names]
            values = [float(run[name]) for name in names]
            shown = ["" if math.isnan(v) else f"{v:.{d}}" for v, d in zip(values, digits, strict=True)]
            lines.append(f"| `{run['objective']}` | {run['rows']} | {run['steps']} | {' | '.join(shown)} |")
    return "\n".join(lines)


def parity_table() -> str:
    """A line for each objective and source of recorded numbers; then those that there are none of."""
    lines = [
        "| objective | source | largest difference of a loss | of a gradient | |",
        "| --- | --- | --: | --: | --- |",
    ]
    with PARITY.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            named = " + ".join(f"`{name}`" for name in line["objective"].split(" + "))
            source = re.sub(r"^(\S+/\S+) (\w{7})$", r"[\1](https://github.com/\1) \2", line["source"])
            numbers = " | ".join("0" if float(line[kind]) == 0 else line[kind] for kind in ("value", "gradient"))
            remark = REMARKS.get((line["objective"], line["source"]), "")
            lines.append(f"| {named} | {source} | {numbers} | {remark} |")
    lines += [f"| `{name}` | none | | | {how} |" for name, how in CHECKED_OTHERWISE.items()]
    return "\n".join(lines)


def written(page: str) -> str:
    """The page with its generated parts made anew."""
    parts = {
        "token losses": loss_table(TOKEN_LOSSES),
        "pair losses": loss_table(PAIR_LOSSES),
        "parity": parity_table(),
        "later short runs": run_table(),
    }
    for part, text in parts.items():
        begin, end = f"<!-- {part}: written by docs/write_objectives.py -->\n", f"\n<!-- end of {part} -->"
        before, rest = page.split(begin)
        page = before + begin + text + end + rest.split(end, 1)[1]
    return page


def _papers(doc: str) -> str:
    """Links to the papers of a docstring, with the equations that stand behind the first."""
    found = dict.fromkeys(re.findall(r"arXiv:(\d{4}\.\d{5})", doc))
    equation = re.search(r"arXiv:\d{4}\.\d{5}, (Eqs?\. [^)]*)\)", doc)
    links = ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in found)
    return links + (f", {equation[1].replace('Eq', 'eq')}" if equation else "")


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    overview = written(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(overview, encoding="utf-8")
    FOLDER.mkdir(exist_ok=True)
    current = files(overview)
    for path in set(FOLDER.glob("*.md")) - set(current):
        path.unlink()
    for path, text in current.items():
        path.write_text(text, encoding="utf-8")
