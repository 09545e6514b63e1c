"""Write a page for each objective, from its docstring, its signature and the registries.

`write_objectives.py` calls it. Numbers of checks and of short runs are those of the tables of objectives.md.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from lit_ift import modules
from lit_ift.losses import INPUTS, PAIR_LOSSES, TOKEN_INPUTS, TOKEN_LOSSES, ift, kto, sft, sftmix, uft
from lit_ift.losses.marks import is_in_batch
from lit_ift.losses.pair import by_token
from lit_ift.losses.pair.chosen_tokens import unmet
from lit_ift.losses.token_registry import OF_TOKEN_LOGPS
from lit_ift.options import Range, _kinds

FOLDER = Path(__file__).with_name("objectives")

HEADINGS = ("Use", "Departures", "Args", "Returns", "Raises", "Attributes")


@dataclass(frozen=True)
class Objective:
    """What a page is about.

    Attributes:
        name: of the page.
        schema: a function whose docstring and signature the page repeats; or a module.
        module: the class in ``lit_ift.modules``.
        config: the folder in ``configs`` whose file the command takes.
        sources: functions whose source the page shows, and what they depart in.
        run: its name in the table of short runs.
        is_loss: whether ``loss`` of the module names it.
    """

    name: str
    schema: Callable[..., Any]
    module: str
    config: str
    sources: tuple[Callable[..., Any], ...]
    run: str
    is_loss: bool = True


FURTHER = {"propagation": (ift.propagation_weights,), "tis_dpo": (by_token.importance_weights,)}
"""Functions that hold a part of a loss."""

OF_MODULES = {
    "ift": ("IFTModule", (ift.temporal_residual, ift.ift_loss, ift.propagation_weights)),
    "sft": ("SFTModule", (sft.sft_loss,)),
    "sftmix": ("SFTMixModule", (sftmix.mixup_loss, sftmix.confidence_pairs, sftmix.paired_positions)),
    "uft": ("UFTModule", (uft.uft_loss, uft.uft_pair_loss)),
    "kto": ("KTOModule", (kto.kto_loss, kto.kl_baseline)),
}
"""Objectives that are modules, with their functions."""

PAGE_NAMES = {("pair", "sft"): "sft_on_pairs"}
"""Pages of losses whose name another objective has too."""

RUN_NAMES = {"nll": "sft", "sft_on_pairs": "sft on pairs"}
"""Names in the table of short runs that are not those of the pages."""

MAXIMUM_LIKELIHOOD = ("nll", "sft", "sft_on_pairs", "sft_token_mean")
"""Pages without a paper."""

EXTRA = {
    "deformed_log": " --model.init_args.options '{alpha: 0.5}'",
    "anchored": " --model.init_args.reference model",
    "anchored_k3": " --model.init_args.reference model",
    "iw": " --model.init_args.reference model",
    "tdpo": " --config configs/loss/tdpo.yaml",
    "tis_dpo": " --config configs/loss/tis_dpo.yaml",
}
"""What a command needs besides the name of the loss."""


def objectives() -> dict[str, Objective]:
    """All objectives by the name of their page."""
    found = {
        name: Objective(name, getattr(modules, module), module, name, sources, name, is_loss=False)
        for name, (module, sources) in OF_MODULES.items()
    }
    for family, losses, module in (("token", TOKEN_LOSSES, "SFTModule"), ("pair", PAIR_LOSSES, "PreferenceModule")):
        config = "sft" if family == "token" else "preference"
        for loss, function in losses.items():
            page, own = PAGE_NAMES.get((family, loss), loss), inspect.unwrap(function)
            sources = (own, *FURTHER.get(loss, ()))
            found[page] = Objective(loss, own, module, config, sources, RUN_NAMES.get(page, page))
    return found


def pages(overview: str) -> dict[str, str]:
    """The text of each page, by the name of its file; ``overview`` is that of objectives.md."""
    return {f"{page}.md": _page(page, objective, overview) for page, objective in objectives().items()}


def _page(page: str, objective: Objective, overview: str) -> str:
    doc = _sections(objective.schema)
    summary, _, body = doc["body"].partition("\n\n")
    # Modules have their metrics there.
    body, _, logged = body.partition("\nLogged ")
    papers = list(dict.fromkeys(re.findall(r"arXiv:(\d{4}\.\d{5})", doc["body"] + doc.get("Args", ""))))
    found = [
        f"# `{objective.name}`" if objective.is_loss else f"# {objective.module}",
        _marked_up(summary),
        ("Papers: " if len(papers) > 1 else "Paper: ")
        + ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in papers)
        if papers
        else "Paper: none, it is maximum likelihood"
        if page in MAXIMUM_LIKELIHOOD
        else "",
        _section("When to use it", doc.get("Use", "")),
        _section("What it computes", body.strip()),
        _given(objective) if objective.is_loss else "",
        _options(objective.schema, doc.get("Args", "")),
        _section("Losses and metrics", f"Logged {logged}" if logged else doc.get("Returns", "")),
        "## Run it\n\n```bash\n" + _command(page, objective) + "\n```",
        _departures(objective),
        _from_tables(page, objective, overview),
        *(_source(function) for function in objective.sources),
    ]
    begin = "<!-- written by docs/write_objectives.py -->\n\n[All objectives](../objectives.md)\n\n"
    return begin + "\n\n".join(part for part in found if part) + "\n"


def _sections(function: Callable[..., Any]) -> dict[str, str]:
    """The sections of a docstring, and under ``body`` what stands before them."""
    parts = re.split(rf"^({'|'.join(HEADINGS)}):\n", inspect.getdoc(function) or "", flags=re.MULTILINE)
    found = {"body": parts[0].strip()}
    for heading, text in zip(parts[1::2], parts[2::2], strict=True):
        indented = re.match(r"(?: .*\n?|\n)*", text)
        assert indented is not None
        found[heading] = textwrap.dedent(indented[0]).strip()
        found["body"] += "\n\n" + text[indented.end() :].strip() if text[indented.end() :].strip() else ""
    return found


def _section(heading: str, text: str) -> str:
    return f"## {heading}\n\n{_marked_up(text)}" if text else ""


def _marked_up(text: str) -> str:
    """Text of a docstring as Markdown."""
    return text.replace("``", "`")


def _given(objective: Objective) -> str:
    known = TOKEN_INPUTS if objective.config == "sft" else INPUTS
    takes = [p.name for p in inspect.signature(objective.schema).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    lines = [f"- `{name}`: {_marked_up(known[name])}" for name in takes]
    marks = []
    if is_in_batch(objective.schema):
        marks.append("In-batch: a row's loss depends on the others of its micro-batch.")
    elif set(takes) <= set(OF_TOKEN_LOGPS):
        marks.append("A function of the row's own token log-probabilities alone.")
    if objective.config == "sft":
        marks.append(f"It takes {'' if 'data_weights' in takes else 'no '}weights of turns (`data_weights`).")
        if not unmet(objective.schema):
            marks.append("On pairs, `loss` of `PreferenceModule` takes it for the chosen answers, alone or as a term.")
    return "\n\n".join(["## What it is given", "\n".join(lines), *marks])


def _options(schema: Callable[..., Any], args: str) -> str:
    meanings = dict(re.findall(r"^(\w+): ((?:.*\n?)(?:^ +.*\n?)*)", args, re.MULTILINE))
    kinds = _kinds(schema)
    target = vars(schema)["__init__"] if isinstance(schema, type) else schema
    lines = ["| option | default | allowed | meaning |", "| --- | --- | --- | --- |"]
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            default = "needed" if parameter.default is parameter.empty else f"`{_in_yaml(parameter.default)}`"
            meaning = _marked_up(" ".join(meanings[parameter.name].split()))
            cells = (f"`{parameter.name}`", default, _allowed(kinds[parameter.name]), meaning)
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "## Options\n\n" + "\n".join(lines) if len(lines) > 2 else ""


def _in_yaml(default: Any) -> str:
    return "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def _allowed(kind: Any) -> str:
    """What an annotation allows, in words."""
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    ranges = [limit for limit in getattr(kind, "__metadata__", ()) if isinstance(limit, Range)]
    if ranges:
        return " and ".join([*(["whole number"] if kind.__origin__ is int else []), *map(repr, ranges)])
    if get_args(kind) and get_origin(kind) is not dict:
        return " or ".join(_allowed(option) for option in get_args(kind))
    plain = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text", type(None): "`null`"}
    return plain.get(kind, "mapping" if get_origin(kind) is dict else "any")


def _command(page: str, objective: Objective) -> str:
    command = f"lit-ift fit --config configs/{objective.config}/smollm2-135m.yaml"
    if not objective.is_loss:
        return command
    if page in ("tdpo", "tis_dpo"):
        return command + EXTRA[page]
    return f"{command} --model.init_args.loss {objective.name}{EXTRA.get(page, '')}"


def _departures(objective: Objective) -> str:
    found = []
    for function in dict.fromkeys([objective.schema, *objective.sources]):
        if text := _sections(function).get("Departures"):
            found.append(text if function is objective.schema else f"`{function.__name__}`: {text}")
    return _section("Departures", "\n\n".join(found))


def _from_tables(page: str, objective: Objective, overview: str) -> str:
    """What objectives.md says of checks and of the short run."""
    parts = []
    if checked := _lines(overview, "Checked against", page):
        table = "\n".join([checked[0], *(one.splitlines()[-1] for one in checked[1:])])
        parts.append(f"## Checked against\n\n{table}\n\nAbsolute, in float64. [How](../objectives.md#checked-against)")
    if runs := _lines(overview, "Short runs on real rows", objective.run):
        what = (
            "The loss is that of held-out rows. A run of eight steps shows that an objective learns; it compares none. "
        )
        parts += ["## Short run", *runs, f"{what}[What was run](../objectives.md#short-runs-on-real-rows)"]
    return "\n\n".join(parts)


def _lines(overview: str, heading: str, name: str) -> list[str]:
    """The line of each table of a section that has this name first, under the head of the table."""
    found, head = [], []
    for line in overview.split(f"\n## {heading}\n")[1].split("\n## ")[0].splitlines():
        if not line.startswith("|"):
            head = []
        elif len(head) < 2:
            head.append(line)
        elif f"`{name}`" in line.split("|")[1]:
            found.append("\n".join([*head, line]))
    return found


def _source(function: Callable[..., Any]) -> str:
    """The code of a function without its docstring, folded."""
    text = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    node = ast.parse(text).body[0]
    assert isinstance(node, ast.FunctionDef)
    lines = text.splitlines()
    if isinstance(node.body[0], ast.Expr):
        del lines[node.body[0].lineno - 1 : node.body[0].end_lineno]
    code = "\n".join(lines)
    path = "/".join(function.__module__.split(".")) + ".py"
    summary = f"<summary><code>{function.__name__}</code> in <code>{path}</code></summary>"
    return f"<details>\n{summary}\n\n```python\n{code}\n```\n\n</details>"


def files(overview: str) -> Mapping[Path, str]:
    """The text of each page by its path."""
    return {FOLDER / name: text for name, text in pages(overview).items()}
