"""The file of a study: what is compared, at which learning rates, over which seeds, and how it is judged."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, TypeVar

import yaml

from lit_ift.errors import UserError, did_you_mean, told_as
from lit_ift.options import check_options

T = TypeVar("T")

NAME: Final = re.compile(r"[A-Za-z0-9][\w.+-]*")
"""Of a variant, which is part of names of folders."""

MAPPINGS: Final = {"options", "slurm", "task_options", "contrasts"}
"""Fields that hold options."""

RATE: Final = "model.init_args.optimizer.init_args.lr"
SEEDS: Final = ("seed_everything", "data.init_args.order_seed")


@dataclass(frozen=True)
class Variant:
    """One of the things that are compared.

    Args:
        name: letters, digits, and ``. _ + -``.
        config: YAML files that come after those of the study.
        options: as on the command line of ``lit-ift fit``, after those of the study.
        rates: learning rates of its own, as many as the study's.
    """

    name: str
    config: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    rates: list[float] | None = None


@dataclass(frozen=True)
class Study:
    """A comparison of variants.

    Args:
        variants: the first one is what the others are compared with.
        rates: learning rates; each variant is trained with each of its own.
        seeds: of the runs that are reported.
        config: YAML files that all runs begin with, as ``--config`` takes them.
        options: as on the command line of ``lit-ift fit``, for all runs. ``{seed}`` in a text is the run's seed.
        rate_option: the option that a rate is given to.
        seed_options: the options that a seed is given to.
        rate_seeds: seeds of the runs by which rates are chosen; those of ``seeds`` by default. With others the rows of
            the report did not take part in the choice.
        select: the measure by which rates are chosen.
        measures: those to report, the most important one first; all that runs have by default.
        contrasts: name -> weight of each variant; sums of variants that are compared with 0, such as an interaction.
        lower_is_better: measures of your own in which a lower value is better.
        evaluations: import paths of functions ``(module, datamodule) -> {measure: {item: value}}``, called after
            training.
        tasks: of ``lit-ift eval``, which scores the model of each run on them; none by default.
        task_options: its other options, such as ``max_rows``.
        launcher: what each run is started by, such as ``[torchrun, --nproc-per-node, "4"]``; this Python by default.
        slurm: options of submitit by which runs are handed to SLURM; an empty mapping takes its defaults.
        keep: what is left of a run that has its result: the result and its curves, or its checkpoints and model too.
        output: folder for all of it; ``studies/<name of the file>`` by default.
    """

    variants: list[Variant]
    rates: list[float]
    seeds: list[int]
    config: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    rate_option: str = RATE
    seed_options: list[str] = field(default_factory=lambda: list(SEEDS))
    rate_seeds: list[int] | None = None
    select: str = "val/nll"
    measures: list[str] | None = None
    contrasts: dict[str, dict[str, float]] = field(default_factory=dict)
    lower_is_better: list[str] = field(default_factory=list)
    evaluations: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    task_options: dict[str, Any] = field(default_factory=dict)
    launcher: list[str] = field(default_factory=list)
    slurm: dict[str, Any] | None = None
    keep: Literal["results", "models"] = "results"
    output: str | None = None

    def rates_of(self, variant: Variant) -> list[float]:
        """The learning rates of a variant."""
        return self.rates if variant.rates is None else variant.rates

    @property
    def seeds_of_rates(self) -> list[int]:
        """The seeds by which rates are chosen."""
        return self.seeds if self.rate_seeds is None else self.rate_seeds


def read_study(path: Path) -> Study:
    """Read and check a file, apart from what only the parser of ``fit`` knows.

    Raises:
        UserError: it cannot be read, or says something that cannot be.
    """
    remedy = "Name the YAML file of a study."
    with told_as((OSError, UnicodeDecodeError), lambda error: UserError(f"{path} cannot be read: {error}. {remedy}")):
        text = path.read_text(encoding="utf-8")
    with told_as(yaml.YAMLError, lambda error: UserError(f"{path} is no YAML: {error}")):
        content = yaml.safe_load(text)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}, where a mapping with variants, rates, … is needed.")
    problems = [*_unknown(content, Study, ""), *_missing(content)]
    for number, variant in enumerate(content.get("variants") or []):
        problems += _unknown(variant, Variant, f"variants[{number}].") if isinstance(variant, dict) else []
    if not problems:
        study = _typed(content, path)
        problems = list(_problems(study))
    if problems:
        raise UserError(f"{path}: " + "\n".join(problems))
    return study


def _typed(content: dict[str, Any], path: Path) -> Study:
    values = _with_numbers(content)
    made = []
    with told_as(ValueError, lambda error: UserError(f"{path}: {error}.")):
        for number, variant in enumerate(content["variants"]):
            where = f"variants[{number}]"
            if not isinstance(variant, dict) or "name" not in variant:
                raise ValueError(f"{where} must be a mapping with a name")
            made.append(_made(Variant, _with_numbers(variant), f"{where}."))
        return _made(Study, {**values, "variants": made}, "")


def _made(kind: type[T], values: dict[str, Any], where: str) -> T:
    check_options(kind, values, prefix=where)
    for name in MAPPINGS & values.keys():
        if not isinstance(values[name], dict | NoneType):
            raise ValueError(f"{where}{name}={values[name]!r} must be a mapping of options")
    return kind(**values)


def _with_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """YAML takes 1e-4 for text, as it has no dot."""

    def number(value: Any) -> Any:
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return value

    rates = values.get("rates")
    return {**values, "rates": [number(rate) for rate in rates]} if isinstance(rates, list) else dict(values)


def _unknown(content: Mapping[str, Any], kind: type, where: str) -> Iterator[str]:
    known = [entry.name for entry in fields(kind)]
    for name in content:
        if name not in known:
            yield f"there is no '{where}{name}'.{did_you_mean(name, known)} There are: {', '.join(known)}."


def _missing(content: Mapping[str, Any]) -> Iterator[str]:
    for name in ("variants", "rates", "seeds"):
        if not isinstance(content.get(name), list) or not content[name]:
            yield f"'{name}' must be a list of at least one."


def _problems(study: Study) -> Iterator[str]:
    """What types do not say."""
    yield from _repeated("variants", [variant.name.lower() for variant in study.variants])
    yield from _repeated("seeds", study.seeds)
    yield from _repeated("rate_seeds", study.rate_seeds or [])
    if study.rate_seeds == []:
        yield "rate_seeds=[] leaves nothing to choose rates by. Leave it out, or name a seed."
    if not study.seed_options:
        yield "seed_options=[] would make all seeds alike. Name the options that a seed is given to."
    for variant in study.variants:
        where = f"variant {variant.name!r}"
        if not NAME.fullmatch(variant.name):
            yield f"{where}: a name has letters, digits and . _ + - alone, and begins with a letter or a digit."
        rates = study.rates_of(variant)
        yield from _repeated(f"{where}: rates", rates)
        if len(rates) != len(study.rates):
            yield (
                f"{where} has {len(rates)} rates and the study {len(study.rates)}: each variant gets the same budget, "
                "so give it as many."
            )
        if any(not 0 < rate < float("inf") for rate in rates):
            yield f"{where}: rates={rates} must be above 0 and finite."
    yield from _odd_contrasts(study)
    if study.task_options and not study.tasks:
        yield "task_options say nothing without tasks. Name tasks, or leave them out."
    if study.slurm is not None and study.launcher and study.launcher[0] == "torchrun":
        yield "launcher: under SLURM the job itself starts the ranks (tasks_per_node). Leave torchrun out."


def _odd_contrasts(study: Study) -> Iterator[str]:
    names = [variant.name for variant in study.variants]
    for name, weights in study.contrasts.items():
        if not isinstance(weights, dict) or not all(isinstance(weight, int | float) for weight in weights.values()):
            yield f"contrasts.{name}={weights!r} must be a weight for each variant, such as {{{names[0]}: -1}}."
            continue
        for other in weights.keys() - set(names):
            yield f"contrasts.{name}: there is no variant {other!r}.{did_you_mean(other, names)}"
        if not abs(sum(weights.values())) <= 1e-9 or not any(weights.values()):  # NaN is neither.
            yield f"contrasts.{name}: its weights add up to {sum(weights.values()):g}; that must be 0."


def _repeated(what: str, values: Sequence[Any]) -> Iterator[str]:
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        yield f"{what}: {', '.join(twice)} occurs more than once."
