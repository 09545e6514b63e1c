"""A toy study from its plan to its report, which is cut in the middle and gone on with."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from rich.console import Console
from tiny import QUIET_TRAINER, tiny_model, tiny_tokenizer

from lit_ift import IFTModule, InstructionDataModule, SFTModule
from lit_ift.callbacks import RunCheckpoint
from lit_ift.errors import NonFiniteLossError, UserError
from lit_ift.losses.logprobs import target_mask
from lit_ift.study.plan import Plan, Run
from lit_ift.study.record import RunRecord, read_record, read_records, write_record
from lit_ift.study.report import write_report
from lit_ift.study.run_result import RunResult
from lit_ift.study.runner import carry_out, one_by_one, unfinished
from lit_ift.study.study_file import Study, Variant
from lit_ift.study.summary import Summary

MODULES = {"sft": SFTModule, "ift": IFTModule}
STUDY = Study(
    [Variant("sft"), Variant("ift", options={"model.class_path": "IFTModule"})], rates=[0.001, 0.01], seeds=[0, 1]
)


def composed(words: Sequence[str]) -> dict[str, Any]:
    """Stands for the parser of ``fit``: all options by their name, in groups."""
    found: dict[str, Any] = {"model": {}, "data": {}}
    for word in words[1:]:
        name, _, value = word.removeprefix("--").partition("=")
        group, _, rest = name.partition(".")
        found[group] = {**found.get(group, {}), rest: value} if rest else value
    return found


def train(run: Run, data_file: Path) -> int:
    """What ``lit-ift fit`` makes of the words of a run, in a few lines."""
    options = dict(word.removeprefix("--").split("=", 1) for word in run.words[1:])
    folder = Path(options["trainer.default_root_dir"]) / "runs" / options["run_name"] / "checkpoints"
    L.seed_everything(int(options["seed_everything"]))
    rate = float(options["model.init_args.optimizer.init_args.lr"])
    data = InstructionDataModule(
        str(data_file),
        val_fraction=0.3,
        tokenizer=tiny_tokenizer(),
        batch_size=4,
        order_seed=int(options["data.init_args.order_seed"]),
    )
    module = MODULES[run.variant](
        tiny_model(dtype=torch.float32), optimizer=lambda weights: torch.optim.AdamW(weights, lr=rate)
    )
    result = RunResult(**json.loads(options["trainer.callbacks+"])["init_args"])
    checkpoints = RunCheckpoint(folder, every_n_train_steps=1)
    last = folder / "last.ckpt"
    trainer = L.Trainer(**{**QUIET_TRAINER, "enable_checkpointing": True}, max_steps=2, callbacks=[result, checkpoints])
    trainer.fit(module, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)
    return 0


def study_of(folder: Path, data_file: Path, study: Study = STUDY) -> tuple[Summary, str]:
    """The summary of a study whose runs are done in this process, and its report without costs."""
    plan = Plan(study, folder, composed)
    console = Console(record=True, width=200, quiet=True)
    summary = carry_out(study, plan, one_by_one(lambda run: train(run, data_file)), console)
    write_report(summary, folder, "toy")
    before, _, after = (folder / "report.md").read_text().partition("**Cost")
    return summary, before + after.partition("**Learning rates")[2]


class CutError(Exception):
    """Stands for what ends a process."""


@pytest.mark.slow
def test_a_study_that_is_cut_and_gone_on_with_gives_the_same_report(
    tmp_path: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, whole = study_of(tmp_path / "whole", data_file)
    records = read_records(tmp_path / "whole" / "results")
    assert {(r.variant, r.rate, r.seed) for r in records.values()} == {
        (variant, rate, seed) for variant in ("sft", "ift") for rate in (0.001, 0.01) for seed in (0, 1)
    }
    assert {(r.steps, r.rows) for r in records.values()} == {(2, 8)}
    orders = [{r.order for r in records.values() if r.seed == seed} for seed in (0, 1)]
    assert [len(of_seed) for of_seed in orders] == [1, 1]  # The same for both variants and rates.
    assert orders[0] != orders[1]
    assert {len(r.scores["val/nll"]) for r in records.values()} == {5}
    assert all(r.grad_norm for r in records.values())
    assert all(
        r.seconds > 0 and r.tokens == next(iter(records.values())).tokens for r in records.values() if r.seed == 0
    )
    assert not list((tmp_path / "whole" / "runs").glob("*/checkpoints"))
    assert (tmp_path / "whole" / "report.html").read_text().count("data:image/png;base64,") == 2
    assert [variant.name for variant in summary.variants] == ["sft", "ift"]
    assert any("2 seed(s)" in note for note in summary.notes)
    assert not any("budget" in note for note in summary.notes)

    starts: list[int] = []
    begin = RunResult.on_train_batch_start

    def cut(self: RunResult, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        starts.append(batch_idx)
        if len(starts) == 6:  # The second step of the third run.
            raise CutError
        begin(self, trainer, module, batch, batch_idx)

    monkeypatch.setattr(RunResult, "on_train_batch_start", cut)
    with pytest.raises(CutError):
        study_of(tmp_path / "cut", data_file)
    assert len(read_records(tmp_path / "cut" / "results")) == 2
    assert study_of(tmp_path / "cut", data_file)[1] == whole
    assert len(starts) == 6 + 1 + 2 * 5  # The third run went on with its second step, and no run was done twice.
    times = {"seconds": 0.0, "peak_memory": None}
    again = {key: replace(record, **times) for key, record in read_records(tmp_path / "cut" / "results").items()}
    assert again == {key: replace(record, **times) for key, record in records.items()}
    # Another name, one more seed: what is there stays.
    more = replace(STUDY, variants=[replace(STUDY.variants[0], name="plain"), STUDY.variants[1]], seeds=[0, 1, 2])
    assert {run.seed for run in unfinished(more, Plan(more, tmp_path / "cut", composed))} == {2}


def test_scores_of_held_out_rows_are_those_of_the_plain_model(tmp_path: Path, data_file: Path) -> None:
    """A row's nll is the mean over its trained tokens, from the model's own logits, and for IFT too without fusion."""
    data = InstructionDataModule(
        str(data_file), val=str(data_file), tokenizer=tiny_tokenizer(), batch_size=5, eval_batch_size=4
    )
    module = IFTModule(tiny_model(dtype=torch.float64), lam=0.4)
    result = RunResult(str(tmp_path / "one.json"), "key", "ift", 0.1, 0)
    L.Trainer(**QUIET_TRAINER, max_steps=1, callbacks=[result]).fit(module, datamodule=data)
    scores = read_record(tmp_path / "one.json").scores
    assert len(scores["val/nll"]) == 21
    for index in (0, 4, 20):
        example = data.datasets["val"].rows[index].sides["answer"]
        ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels])
        with torch.no_grad():
            logp = module.model(input_ids=ids).logits.log_softmax(-1)
        targets = [(t, int(labels[0, t + 1])) for t in range(ids.shape[1] - 1) if target_mask(labels)[0, t]]
        nll = -sum(float(logp[0, t, token]) for t, token in targets) / len(targets)
        right = sum(int(logp[0, t].argmax()) == token for t, token in targets) / len(targets)
        name = list(scores["val/nll"])[index]
        assert name.startswith(f"{index:06d} ")
        assert scores["val/nll"][name] == pytest.approx(nll, rel=1e-5)
        assert scores["val/token_accuracy"][name] == pytest.approx(right, rel=1e-5)


def test_a_run_that_diverges_is_a_result(tmp_path: Path, data_file: Path) -> None:
    module = SFTModule(tiny_model(dtype=torch.float32), optimizer=lambda weights: torch.optim.SGD(weights, lr=1e30))
    result = RunResult(str(tmp_path / "one.json"), "key", "sft", 1e30, 0)
    data = InstructionDataModule(str(data_file), val_fraction=0.3, tokenizer=tiny_tokenizer(), batch_size=4)
    with pytest.raises(NonFiniteLossError):
        L.Trainer(**QUIET_TRAINER, max_steps=4, callbacks=[result]).fit(module, datamodule=data)
    record = read_record(tmp_path / "one.json")
    assert record.diverged
    assert "became NaN or infinite" in record.reason
    assert record.scores == {}


def made(run: Run, **scores: float) -> None:
    """The result of a run, the same for each of three items."""
    items = {name.replace("_", "/"): {f"item {i}": value + i for i in range(3)} for name, value in scores.items()}
    write_record(run.result, RunRecord(run.key, run.variant, run.rate, run.seed, "done", scores=items, seconds=1.0))


def summary_of(study: Study, folder: Path, scores: dict[tuple[str, float], float | None]) -> Summary:
    """The summary of a study whose runs have these scores, by variant and rate; None has diverged."""

    def launch(run: Run) -> int:
        value = scores[run.variant, run.rate]
        if value is None:
            record = RunRecord(run.key, run.variant, run.rate, run.seed, "diverged", reason="it burst")
            write_record(run.result, record)
        else:
            made(run, val_nll=value + run.seed)
        return 0

    return carry_out(study, Plan(study, folder, composed), one_by_one(launch), Console(quiet=True))


def test_rates_are_chosen_by_validation_and_numbers_are_those_of_hand(tmp_path: Path) -> None:
    study = replace(STUDY, rates=[1.0, 2.0, 3.0])
    scores = {("sft", 1.0): 5.0, ("sft", 2.0): 4.0, ("sft", 3.0): 6.0}
    scores |= {("ift", 1.0): None, ("ift", 2.0): 3.5, ("ift", 3.0): 2.5}
    sft, ift = (summary := summary_of(study, tmp_path, scores)).variants
    assert (sft.choice.chosen, sft.choice.at_edge) == (2.0, False)
    assert (ift.choice.chosen, ift.choice.at_edge) == (3.0, True)
    assert any("ift: its best rate 3 lies at the edge" in note for note in summary.notes)
    estimate = sft.scores["val/nll"]  # Seeds have 4 + 1 and 4 + 1 + 1, for items add 0, 1 and 2.
    assert estimate.values == {0: 5.0, 1: 6.0}
    assert estimate.mean == 5.5
    assert estimate.standard_error == pytest.approx(0.5)
    comparison = ift.comparisons["val/nll"]
    assert comparison.difference.value == pytest.approx(-1.5)
    assert (comparison.difference.low, comparison.difference.high) == pytest.approx((-1.5, -1.5))
    assert comparison.seeds == 2
    assert comparison.adjusted == comparison.difference.p_value


def test_rates_of_other_seeds_leave_the_report_alone(tmp_path: Path) -> None:
    study = replace(STUDY, rate_seeds=[7])
    plan = Plan(study, tmp_path, composed)
    assert {run.seed for run in plan.runs_for_rates()} == {7}
    scores = {("sft", 0.001): 1.0, ("sft", 0.01): 2.0, ("ift", 0.001): 2.0, ("ift", 0.01): 1.0}
    summary = summary_of(study, tmp_path, scores)
    assert [variant.scores["val/nll"].values.keys() for variant in summary.variants] == [{0, 1}, {0, 1}]
    assert len(read_records(tmp_path / "results")) == 4 + 4
    assert not any("flatters" in note for note in summary.notes)


def test_a_contrast_is_a_weighted_sum_of_variants(tmp_path: Path) -> None:
    """The interaction of a 2x2: 9 - 4 - 3 + 1 = 3 in all seeds and items."""
    names = {"neither": 1.0, "one": 4.0, "other": 3.0, "both": 9.0}
    variants = [Variant(name, options={"model.class_path": name}) for name in names]
    contrasts = {
        "interaction": {"both": 1, "one": -1, "other": -1, "neither": 1},
        "one alone": {"one": 1, "neither": -1},
    }
    study = Study(variants, rates=[0.1], seeds=[0, 1, 2], contrasts=contrasts)
    summary = summary_of(study, tmp_path, {(name, 0.1): value for name, value in names.items()})
    found = summary.contrasts["val/nll"]
    assert found["interaction"].difference.value == pytest.approx(3.0)
    assert found["one alone"].difference.value == pytest.approx(3.0)
    # The least that 10000 draws can give, times two tests.
    assert found["interaction"].adjusted == pytest.approx(2 * 2 / 10001)
    assert (
        "| interaction | +3.0000 | +3.0000 to +3.0000 | 0.0004 | – |"
        in write_report(summary, tmp_path, "t")[0].read_text()
    )


def test_where_all_diverge_it_is_said(tmp_path: Path) -> None:
    scores = dict.fromkeys([(name, rate) for name in ("sft", "ift") for rate in STUDY.rates])
    with pytest.raises(UserError, match="diverged in every run"):
        summary_of(STUDY, tmp_path, scores)
    one = summary_of(STUDY, tmp_path / "one", {**scores, ("sft", 0.001): 1.0})
    assert one.variants[1].choice.chosen is None
    assert "ift: training diverged at every rate." in one.notes
    assert (write_report(one, tmp_path / "one", "t")[0]).read_text().count("| ift | –") == 2


def test_two_failures_in_a_row_stop_the_study_and_one_does_not(tmp_path: Path) -> None:
    calls: list[str] = []

    def launch(run: Run) -> int:
        calls.append(run.name)
        run.log.parent.mkdir(parents=True, exist_ok=True)
        run.log.write_text("first\nno room on the disk\n")
        if len(calls) in (2, 5, 6):
            return 1
        made(run, val_nll=1.0)
        return 0

    with pytest.raises(UserError, match=r"(?s)3 runs failed: .*no room on the disk") as raised:
        carry_out(STUDY, Plan(STUDY, tmp_path, composed), one_by_one(launch), Console(quiet=True))
    assert len(calls) == 6
    assert "The same command goes on" in str(raised.value)
    assert len(unfinished(STUDY, Plan(STUDY, tmp_path, composed))) == 8 - 3


def test_unequal_budgets_and_seeds_without_effect_are_told(tmp_path: Path) -> None:
    study = replace(STUDY, rates=[0.1])

    def launch(run: Run) -> int:
        items = {"val/nll": {"a": 1.0, "b": 2.0}}
        record = RunRecord(run.key, run.variant, run.rate, run.seed, "done", scores=items, steps=3, rows=9)
        write_record(run.result, replace(record, rows=9 + (run.variant == "ift"), order=run.variant))
        return 0

    notes = carry_out(study, Plan(study, tmp_path, composed), one_by_one(launch), Console(quiet=True)).notes
    assert any("ift and sft saw other numbers of rows: the comparison is not at equal budget" in note for note in notes)
    assert any("sft: all seeds gave the same scores" in note for note in notes)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    scores = {"val/nll": {"a\n|": 1.25, "b": -3e-7}, "tasks/all": {"c": 1.0}, "val/margin": {"a\n|": 2.0, "b": 0.5}}
    record = RunRecord("k", "v", 1e-4, 3, "done", scores=scores, peak_memory=1.5, grad_norm=math.pi, order="x")
    write_record(tmp_path / "r.json", record)
    assert read_record(tmp_path / "r.json") == record
    (tmp_path / "r.json").write_text("[]")
    with pytest.raises(UserError, match="is no result of a run"):
        read_records(tmp_path)
