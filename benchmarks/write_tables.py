"""Write the tables of measured times and memory into the pages, from the result files.

Usage: python benchmarks/write_tables.py [--results FOLDER]

``benchmarks/README.md`` gets every result with its machine, versions, command and date;
docs/measured.md the ratios, README.md a few of these. What stands between the markers is replaced.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from side_by_side import RESULTS, ROOT, load, ratio_text, table

PAGES: Final = {
    ROOT / "benchmarks" / "README.md": "all",
    ROOT / "README.md": "brief",
    ROOT / "docs" / "measured.md": "short",
}


class Headline(NamedTuple):
    """A ratio of the short table.

    Args:
        text: what it is.
        script: whose results it is in.
        name: the contestant.
        reference: the one that it is compared with.
        target: what is aimed at, as text; ``{fact}`` is put in from the result.
        part: how the names of its parts end.
    """

    text: str
    script: str
    name: str
    reference: str
    target: str
    part: str = ""


HEADLINES: Final = (
    Headline("IFT step / our SFT step", "step_time", "IFT", "SFT", "at most {target_of_ift}"),
    Headline("the same with prompts shared", "step_time", "IFT, prompts shared", "SFT", "at most {target_of_ift}"),
    Headline("the same with predictions reused", "step_time", "IFT, predictions reused", "SFT", "below 1.04"),
    Headline("transformers' step with labels / our SFT step", "step_time", "transformers", "SFT", ""),
    Headline("TRL's SFT step / our SFT step", "step_time", "TRL SFT", "SFT", ""),
    Headline("trained tokens a second, our SFT / TRL's", "fit_speed", "SFT", "TRL SFT", "at least 1.6"),
    Headline("trained tokens a second, our IFT / TRL's SFT", "fit_speed", "IFT", "TRL SFT", "at least 1.3"),
    Headline("the same with prompts shared", "fit_speed", "IFT, prompts shared", "TRL SFT", "at least 1.3"),
    Headline("our IFT / the authors' code, padded to 512", "fit_speed", "IFT", "authors' IFT, padded to 512", "5"),
    Headline("our IFT / the authors' code, padded to 1024", "fit_speed", "IFT", "authors' IFT, padded to 1024", "9"),
    Headline("TRL's DPO step / ours", "pairs_speed", "TRL DPO", "DPO", "at least 1.6"),
    Headline("TRL's DPO step / ours, prompts shared", "pairs_speed", "TRL DPO", "DPO, prompts shared", "at least 2"),
    Headline("memory of a step, IFT / SFT", "memory_step", "IFT", "SFT", "at most 1.05"),
    Headline("memory of a step, SFT / TRL's SFT", "memory_step", "SFT", "TRL SFT", "at most 0.8"),
    Headline("memory of a step, DPO / TRL's DPO", "memory_step", "DPO", "TRL DPO", "at most 0.7"),
    Headline(
        "`fit --model.help IFTModule` / bare imports", "startup", "fit --model.help IFTModule", "bare imports", "1.3"
    ),
    Headline("`fit --print_config` / bare imports", "startup", "fit --print_config", "bare imports", "at most 1.3"),
    Headline(
        "`data check` of 100 rows / bare imports", "startup", "data check, 100 rows", "bare imports", "at most 1.3"
    ),
)


BRIEF: Final = {("IFT", "SFT"), ("TRL SFT", "SFT"), ("TRL DPO", "DPO, prompts shared")}
"""Contestants and references that README tells of."""


def short_table(results: Sequence[Mapping[str, Any]], headlines: Sequence[Headline] = HEADLINES) -> str:
    """Ratios with their 95 % intervals and what was aimed at, and how they were taken."""
    lines = ["| median ratio (95 % interval) | rows | rounds | measured | aim |", "| --- | --- | --: | --: | --: |"]
    used: list[Mapping[str, Any]] = []
    for headline in headlines:
        for result in results:
            told = result["summary"].get(headline.name, {}).get("ratio_to", {})
            if result["script"] != headline.script or headline.reference not in told:
                continue
            aim = headline.target.format(**result["facts"]) if headline.target else ""
            share = result["facts"].get("response_share")
            rows = result["part"] if share is None else f"{result['part']}, s = {share:.2f}"
            rounds = min(result["summary"][name]["rounds"] for name in (headline.name, headline.reference))
            ratio = told[headline.reference]
            measured = ratio_text(ratio) if rounds > 1 else f"{ratio[0]:.3g}"  # One round has no spread.
            lines.append(f"| {headline.text} | {rows} | {rounds} | {measured} | {aim} |")
            used.append(result)
    if not used:
        return "Nothing has been measured yet."
    return "\n".join([*lines, "", *conditions(used)])


def conditions(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each machine and day."""
    told = dict.fromkeys(f"Taken on {machine_text(result['machine'])}, {result['date']}." for result in results)
    return [*told, "s is the share of response tokens. How: [benchmarks](BENCHMARKS)."]


def machine_text(machine: Mapping[str, Any]) -> str:
    """Processor, cores, memory and versions."""
    packages = ("torch", "transformers", "lightning", "trl")
    versions = ", ".join(f"{name} {machine[name]}" for name in packages if name in machine)
    device = machine.get("accelerator") or f"{machine['cores']} cores of {machine['processor'] or 'a CPU'}"
    return f"{device}, {machine['memory_gib']} GiB, {versions}"


def all_tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Every result with what is known of it."""
    if not results:
        return "Nothing has been measured yet."
    parts: list[str] = []
    for result in results:
        facts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result["facts"].items())
        parts += [f"### {result['script']}: {result['part']}", "", table(result), ""]
        parts += [f"`{result['command']}`, {result['date']}, commit {result['commit']}, ", ""]
        parts[-2] += f"{machine_text(result['machine'])}. {facts}."
    return "\n".join(parts).strip()


def replaced(text: str, kind: str, content: str) -> str:
    """The text with what stands between the markers of a kind replaced.

    Raises:
        ValueError: there are no such markers.
    """
    pattern = re.compile(rf"(<!-- measured: {kind} -->\n).*?(<!-- end of measured -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the page has no markers <!-- measured: {kind} --> and <!-- end of measured -->")
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


def main() -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--results", type=Path, default=RESULTS)
    results = load(parser.parse_args().results)
    for page, kind in PAGES.items():
        some = [h for h in HEADLINES if kind == "short" or (h.name, h.reference) in BRIEF]
        content = all_tables(results) if kind == "all" else short_table(results, some)
        up = "../" * (len(page.relative_to(ROOT).parts) - 1)
        content = content.replace("(BENCHMARKS)", f"({up}benchmarks/README.md)")
        page.write_text(replaced(page.read_text(encoding="utf-8"), kind, content), encoding="utf-8")


if __name__ == "__main__":
    main()
