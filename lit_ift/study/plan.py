"""The runs of a study: each is a command line of ``lit-ift fit``, and has a key of what decides its result."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any, Final

from lit_ift.checkpoints.run_folder import RUNS
from lit_ift.errors import UserError
from lit_ift.imports import check_is_function, imported
from lit_ift.models.digest import file_digest, file_digests
from lit_ift.models.source import ModelSource
from lit_ift.study.study_file import Study, Variant

RESULTS: Final = "results"
"""Folder of the results of runs, in the output of a study."""

LOGS: Final = "logs"
"""Folder of what runs have printed, in the output of a study."""

DECISIVE: Final = ("seed_everything", "model", "data", "trainer", "samples")
"""Groups of options that have a part in a result."""

WITHOUT_PART: Final = (
    *("trainer.default_root_dir", "trainer.logger", "trainer.log_every_n_steps"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.enable_checkpointing"),
    *("data.init_args.num_workers", "data.init_args.cache", "data.init_args.cache_dir"),
    *("samples.batch_size", "samples.show", "samples.prompts", "samples.max_prompts", "samples.every_n_steps"),
)
"""Options of them that have none."""

Compose = Callable[[Sequence[str]], dict[str, Any]]
"""Gives the composed configuration of the words of ``fit`` as plain values, or says what is wrong with it."""


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
        variant: its name.
        rate: learning rate.
        seed: of the run.
        key: of what decides the result.
        folder: output of the study.
        words: what follows ``lit-ift``.
        eval_words: what follows it to score the trained model on tasks; none without tasks.
    """

    variant: str
    rate: float
    seed: int
    key: str
    folder: Path
    words: tuple[str, ...]
    eval_words: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.variant}-lr{self.rate:g}-seed{self.seed}-{self.key[:8]}"

    @property
    def result(self) -> Path:
        """The file that it leaves."""
        return self.folder / RESULTS / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """The file of what it prints."""
        return self.folder / LOGS / f"{self.name}.log"

    @property
    def run_folder(self) -> Path:
        """The folder that ``fit`` writes to."""
        return self.folder / RUNS / self.name

    @property
    def evaluated(self) -> Path:
        """The folder that ``eval`` writes to."""
        return self.run_folder / "eval"


class Plan:
    """All runs of a study, which is checked on the way.

    Args:
        study: what is compared.
        folder: output of the study.
        compose: the parser of ``fit``.

    Raises:
        UserError: a configuration cannot be used, or two variants are the same.
        argparse.ArgumentError: an option is unknown or has a wrong value.
    """

    def __init__(self, study: Study, folder: Path, compose: Compose) -> None:
        self.study = study
        self.folder = folder
        for path in study.evaluations:
            try:
                check_is_function(f"evaluations: {path}", imported("evaluations", path))
            except ValueError as error:
                raise UserError(str(error)) from error
        self._composed = {variant.name: _decisive(compose(self._words(variant))) for variant in study.variants}
        _refuse_equals(self._composed, study.rate_option)
        self._digests_at = cache(_digests_at)  # Of this plan: files may change before the next one.

    def runs_for_rates(self) -> list[Run]:
        """Those by which rates are chosen; none where there is nothing to choose, as they are reported themselves."""
        study = self.study
        if len(study.rates) == 1:
            return []
        return [
            self._run(variant, rate, seed)
            for seed in study.seeds_of_rates
            for rate_number in range(len(study.rates))
            for variant in study.variants
            for rate in [study.rates_of(variant)[rate_number]]
        ]

    def runs_for_report(self, rates: Mapping[str, float]) -> list[Run]:
        """Those that are reported.

        Args:
            rates: the chosen one of each variant.
        """
        variants = {variant.name: variant for variant in self.study.variants}
        return [self._run(variants[name], rate, seed) for seed in self.study.seeds for name, rate in rates.items()]

    def _words(self, variant: Variant) -> list[str]:
        study = self.study
        files = [word for file in (*study.config, *variant.config) for word in ("--config", str(file))]
        options = {**study.options, **variant.options}
        rate, seed = study.rates_of(variant)[0], study.seeds[0]
        return ["fit", *files, *_as_words({**options, study.rate_option: rate, **_seeds(study, seed)})]

    def _run(self, variant: Variant, rate: float, seed: int) -> Run:
        study = self.study
        places = {study.rate_option: rate, **_seeds(study, seed)}
        composed = _with_seed(self._composed[variant.name], seed)
        for place, value in places.items():
            _put(composed, place, value)
        key = key_of(
            [composed, _digests(composed, self._digests_at), study.evaluations, study.tasks, study.task_options]
        )
        run = Run(variant.name, rate, seed, key, self.folder, ())
        facts = {"path": str(run.result), "key": key, "variant": variant.name, "rate": rate, "seed": seed}
        result = {"class_path": "lit_ift.study.run_result.RunResult", "init_args": facts}
        if study.evaluations:
            facts["evaluations"] = study.evaluations
        own = {
            **places,
            "trainer.default_root_dir": str(self.folder),
            "run_name": run.name,
            "resume": "auto",
            "export.enabled": study.keep == "models" or bool(study.tasks),
            "trainer.callbacks+": result,
        }
        words = (*_with_seed(self._words(variant), seed), *_as_words(own))
        return Run(variant.name, rate, seed, key, self.folder, words, _eval_words(study, run))


def key_of(what: Any) -> str:
    """A hash of plain values."""
    text = json.dumps(what, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _seeds(study: Study, seed: int) -> dict[str, Any]:
    return dict.fromkeys(study.seed_options, seed)


def _eval_words(study: Study, run: Run) -> tuple[str, ...]:
    if not study.tasks:
        return ()
    options = {"output": str(run.evaluated), **study.task_options}
    return ("eval", str(run.run_folder), *_as_words(options), "--tasks", *study.tasks)


def _with_seed(value: Any, seed: int) -> Any:
    """A copy of plain values with the seed in place of ``{seed}``."""
    if isinstance(value, Mapping):
        return {name: _with_seed(part, seed) for name, part in value.items()}
    if isinstance(value, list):
        return [_with_seed(part, seed) for part in value]
    return value.replace("{seed}", str(seed)) if isinstance(value, str) else value


def _as_words(options: Mapping[str, Any]) -> list[str]:
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in options.items()]


def _decisive(composed: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a result of a composed configuration; nulls are left out, so that a new option changes no key."""
    kept = _without_nulls({name: composed.get(name) for name in DECISIVE})
    for name in WITHOUT_PART:
        *above, last = name.split(".")
        place: Any = kept
        for part in above:
            place = place.get(part, {})
        place.pop(last, None)
    return deepcopy(kept)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list | tuple) else value


def _put(composed: dict[str, Any], place: str, value: Any) -> None:
    *above, last = place.split(".")
    for part in above:
        composed = composed.setdefault(part, {})
    composed[last] = value


def _refuse_equals(composed: Mapping[str, Any], rate_option: str) -> None:
    seen: dict[str, str] = {}
    for name, values in composed.items():
        apart_from_rate = deepcopy(values)
        _put(apart_from_rate, rate_option, None)
        other = seen.setdefault(key_of(apart_from_rate), name)
        if other != name:
            raise UserError(
                f"The variants {other!r} and {name!r} are the same once all is composed. Leave one out, or look "
                "whether its option is spelt as it is meant."
            )


def _digests(composed: Mapping[str, Any], digests_at: Callable[[str], dict[str, str]]) -> dict[str, str]:
    """Path to a hash, of all files that the options of model and data name."""
    texts = {*_texts(composed.get("data")), *_texts(composed.get("model"))}
    return {path: digest for text in sorted(texts) for path, digest in digests_at(text).items()}


def _digests_at(text: str) -> dict[str, str]:
    """Of a file, of the files of a pattern, of those of a model's folder, or of all in another folder."""
    path = Path(text)
    if any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        return {f"{text}/{name}": digest for name, digest in file_digests(ModelSource(text, None, text)).items()}
    files = glob(f"{text}/**", recursive=True) if path.is_dir() else glob(text)
    return {file: file_digest(Path(file)) for file in sorted(files) if Path(file).is_file()}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str) and len(value) < 1000 and "\n" not in value and "\0" not in value:
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)
