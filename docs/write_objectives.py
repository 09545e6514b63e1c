"""Write the parts of objectives.md that docstrings and the registries of losses say already.

Run: python docs/write_objectives.py
"""

import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import lit_ift.losses
from lit_ift.losses import PAIR_LOSSES, TOKEN_LOSSES
from lit_ift.losses.marks import is_in_batch

PAGE = Path(__file__).with_name("objectives.md")


def loss_table(losses: Mapping[str, Callable[..., Any]]) -> str:
    """A line for each loss: name, summary and value, options with defaults, paper, file."""
    lines = ["| `loss` | what it is | options | paper | file in `losses/` |", "| --- | --- | --- | --- | --- |"]
    for name, function in losses.items():
        doc = inspect.getdoc(function) or ""
        summary = re.sub(r" \([^)]*arXiv:[^)]*\)", "", doc.split("\n\n")[0]).replace("\n", " ")
        found = re.search(r"``(loss.*?)``", doc, re.DOTALL)
        value = f"<br>`{_one_line(found[1])}`" if found else ""
        file = function.__module__.removeprefix("lit_ift.losses.").replace(".", "/") + ".py"
        cells = [
            f"`{name}`",
            _one_line(summary).replace("``", "`") + (" *In-batch.*" if is_in_batch(function) else "") + value,
            _options(function),
            _papers(doc),
            f"`{file}`",
        ]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines)


def departures() -> str:
    """Where losses depart from their papers or the authors' code, as their docstrings say it."""
    names = {function: name for name, function in {**TOKEN_LOSSES, **PAIR_LOSSES}.items()}
    lines = []
    for function in _functions():
        section = re.search(r"\nDepartures:\n((?: {4}.*\n|\n)+)", (inspect.getdoc(function) or "") + "\n")
        if section:
            lines.append(f"- `{names.get(function, function.__name__)}`: {_one_line(section[1]).replace('``', '`')}")
    return "\n".join(lines)


def written(page: str) -> str:
    """The page with its generated parts made anew."""
    parts = {
        "token losses": loss_table(TOKEN_LOSSES),
        "pair losses": loss_table(PAIR_LOSSES),
        "departures": departures(),
    }
    for part, text in parts.items():
        begin, end = f"<!-- {part}: written by docs/write_objectives.py -->\n", f"\n<!-- end of {part} -->"
        before, rest = page.split(begin)
        page = before + begin + text + end + rest.split(end, 1)[1]
    return page


def _functions() -> Iterator[Callable[..., Any]]:
    """All public functions of the losses, in the order of files and lines."""
    for info in sorted(pkgutil.walk_packages(lit_ift.losses.__path__, "lit_ift.losses."), key=lambda info: info.name):
        for name, value in vars(import_module(info.name)).items():
            if inspect.isfunction(value) and value.__module__ == info.name and not name.startswith("_"):
                yield value


def _options(function: Callable[..., Any]) -> str:
    parameters = inspect.signature(function).parameters.values()
    options = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    return ", ".join(f"`{p.name}` {'needed' if p.default is p.empty else _as_in_yaml(p.default)}" for p in options)


def _as_in_yaml(default: Any) -> str:
    return str(default).lower() if default is None or isinstance(default, bool) else str(default)


def _papers(doc: str) -> str:
    """Links to the papers of a docstring, with the equations that stand behind the first."""
    found = dict.fromkeys(re.findall(r"arXiv:(\d{4}\.\d{5})", doc))
    equation = re.search(r"arXiv:\d{4}\.\d{5}, (Eqs?\. [^)]*)\)", doc)
    links = ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in found)
    return links + (f", {equation[1].replace('Eq', 'eq')}" if equation else "")


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
