"""What a study says, in words and a table: which of the paper's claims it bears out, and which not."""

from itertools import pairwise
from typing import Final, Literal, NamedTuple

import numpy as np
from rich.table import Table

from lit_ift.frozen_lake.result import METRICS, Outcome, Study

Verdict = Literal["holds", "open", "fails"]

CLAIMED: Final = ("dpo", "ift", "orpo", "sft")
"""The paper's order, best first (arXiv:2405.11870, section 5.3): lower MSE to the optimal policy."""
CLAIMS: Final = (*pairwise(CLAIMED), ("ift", "sft"))
"""Better and worse: the neighbours in that order, and the two that the paper is about."""
CLEAR: Final = 2.0
"""A difference counts from two standard errors on."""
WORDS: Final[dict[Verdict, str]] = {"holds": "holds", "open": "is not decided", "fails": "does not hold"}
SHORT: Final = {
    "mse_trajectory": "MSE route",
    "mse_all": "MSE all",
    "success_greedy": "greedy",
    "success_sampled": "sampled",
    "return": "return",
    "success_perturbed": "perturbed",
}


class Difference(NamedTuple):
    """Of two methods in one metric, seed by seed."""

    mean: float  # first less second
    standard_error: float  # of the mean

    @property
    def t(self) -> float:
        """Paired t: the mean in standard errors; 0 where nothing differs."""
        if self.standard_error == 0.0:
            return 0.0 if self.mean == 0.0 else float(np.copysign(np.inf, self.mean))
        return self.mean / self.standard_error

    @property
    def verdict(self) -> Verdict:
        """Whether the first has the lower value."""
        return "holds" if self.t <= -CLEAR else "fails" if self.t >= CLEAR else "open"


def difference(first: Outcome, second: Outcome, metric: str) -> Difference:
    """How much ``first`` exceeds ``second``. The seeds are paired: both began from the same policies."""
    differences = first.metrics[metric] - second.metrics[metric]
    return Difference(float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(len(differences))))


def claims(study: Study, metric: str) -> list[tuple[Outcome, Outcome, Difference]]:
    """The pairs of ``CLAIMS``, as far as the study has both, and how they differ."""
    by_name = {outcome.name: outcome for outcome in study.outcomes}
    pairs = [(by_name[a], by_name[b]) for a, b in CLAIMS if a in by_name and b in by_name]
    return [(better, worse, difference(better, worse, metric)) for better, worse in pairs]


def results_table(study: Study) -> Table:
    """Mean ± standard error of every metric and method, and the paired difference to IFT."""
    seeds = len(study.outcomes[0].metrics["mse_all"])
    table = Table(title=f"Frozen Lake, {seeds} seeds: mean ± standard error")
    table.add_column("method")
    table.add_column("learning rate", justify="right")
    for metric in METRICS:
        table.add_column(SHORT[metric] + (" ↓" if metric.startswith("mse") else " ↑"), justify="right")
    ift = next((outcome for outcome in study.outcomes if outcome.name == "ift"), None)
    if ift is not None:
        table.add_column("MSE all less IFT's (t)", justify="right")
    table.add_column("moves", justify="right")
    for outcome in study.outcomes:
        cells = [f"{outcome.mean(m):.4f}±{outcome.standard_error(m):.4f}" for m in METRICS]
        if ift is not None:
            paired = difference(outcome, ift, "mse_all")
            cells.append("" if outcome is ift else f"{paired.mean:+.4f} ({paired.t:+.1f})")
        table.add_row(outcome.label, f"{outcome.learning_rate:g}", *cells, f"{outcome.moves:,.0f}")
    return table


def claim_lines(study: Study, metric: str) -> list[str]:
    """One line a claim, and one for the whole order if the study has all of its methods."""
    found = claims(study, metric)
    lines = [
        f"  {a.label} < {b.label}: {WORDS[d.verdict]}, {d.mean:+.2g} ± {d.standard_error:.1g}, t = {d.t:+.1f}"
        for a, b, d in found
    ]
    if len(found) == len(CLAIMS):
        ranked = sorted((o for o in study.outcomes if o.name in CLAIMED), key=lambda outcome: outcome.mean(metric))
        whole = "holds" if all(d.verdict == "holds" for *_, d in found) else "does not hold as a whole"
        lines.append(f"  The claimed order {whole}; the means order them {' < '.join(o.label for o in ranked)}.")
    return lines


def report_lines(study: Study) -> list[str]:
    """What the study says of the paper's claims."""
    lines = []
    for metric in ("mse_all", "mse_trajectory"):
        if claim := claim_lines(study, metric):
            lines += [
                f"Claims of the paper, {METRICS[metric]} (paired over seeds; |t| < {CLEAR:g}: not decided):",
                *claim,
            ]
    rates = study.settings["protocol"]["learning_rates"]
    if edge := [o.label for o in study.outcomes if len(rates) > 1 and o.learning_rate in (min(rates), max(rates))]:
        lines.append(f"At an end of the learning rates tried, so that a better one may lie beyond: {', '.join(edge)}.")
    return lines
