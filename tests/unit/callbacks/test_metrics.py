"""Metrics of torchmetrics on validation rows."""

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import pytest
import torch
from feedback import feedback_batch, pairs
from tiny import QUIET_TRAINER, VOCABULARY_SIZE, tiny_batch, tiny_model, tiny_tokenizer
from torch.utils.data import DataLoader
from torchmetrics import MaxMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError
from torchmetrics.text import BLEUScore, CHRFScore, Perplexity, ROUGEScore, SQuAD, WordErrorRate

from lit_ift.callbacks import ExactMatch, MetricEntry, ValidationMetrics
from lit_ift.data.batch.collate import collate
from lit_ift.errors import UserError
from lit_ift.modules import IFTModule, PreferenceModule, SFTModule

pytestmark = pytest.mark.slow


class Shapes(Metric):
    """Notes the shapes that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []
        self.add_state("count", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, logits: torch.Tensor, ids: torch.Tensor) -> None:
        assert logits.shape[:-1] == ids.shape
        self.seen.append(tuple(logits.shape))
        self.count += ids.numel()

    def compute(self) -> torch.Tensor:
        return self.count


def batches() -> list[dict[str, Any]]:
    return [tiny_batch(3, first=3 * i) for i in range(3)]


def measured(
    entries: Mapping[str, MetricEntry], cls: Any = SFTModule, rows: Any = None, **options: Any
) -> tuple[dict[str, float], Any]:
    torch.manual_seed(0)
    module = cls(tiny_model(), **{"reduction": "token", "generation": {"max_new_tokens": 3}, **options})
    module.tokenizer = tiny_tokenizer()
    metrics = ValidationMetrics(entries)
    trainer = L.Trainer(**QUIET_TRAINER, callbacks=[metrics])
    (found,) = trainer.validate(module, DataLoader(rows or batches(), batch_size=None), verbose=False)
    return found, metrics


def test_logits_come_in_chunks_and_give_what_all_of_them_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_ift.callbacks.metrics.chunk_size_for", lambda _: 5)
    own = {
        "ece": MulticlassCalibrationError(VOCABULARY_SIZE, n_bins=5),
        "top5": MulticlassAccuracy(VOCABULARY_SIZE, average="micro", top_k=5),
    }
    given = {"perplexity": Perplexity(), "shapes": Shapes(), **own}
    found, metrics = measured({name: MetricEntry("logits", metric) for name, metric in given.items()})
    model, logits, ids = tiny_model(), [], []
    for batch in batches():
        mask = batch["labels"][:, 1:] != -100
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        logits.append(output[:, :-1][mask].detach())
        ids.append(batch["labels"][:, 1:][mask])
    for name, metric in own.items():
        assert found[f"val/{name}"] == pytest.approx(float(metric(torch.cat(logits), torch.cat(ids))), rel=1e-6)
    assert found["val/perplexity"] == pytest.approx(math.exp(found["val/loss"]), rel=1e-6)
    seen = metrics._logits["shapes"][0].seen
    assert found["val/shapes"] == sum(map(len, ids))
    assert max(shape[1] for shape in seen[1:]) == 5
    assert all(shape[0] == 1 for shape in seen)


def test_perplexity_of_ift_is_that_of_true_tokens() -> None:
    found, _ = measured({"perplexity": MetricEntry("logits", Perplexity())}, IFTModule, lam=0.5)
    theirs, _ = measured({})
    assert found["val/perplexity"] == pytest.approx(math.exp(theirs["val/loss"]), rel=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_feedback_is_measured_on_first_answers(packed: bool) -> None:
    rows = pairs(3)
    chosen = collate([row.sides["chosen"] for row in rows], pad_token_id=0)
    entries = {"perplexity": MetricEntry("logits", Perplexity()), "exact": MetricEntry("answers", ExactMatch())}
    batch = feedback_batch(rows, packed=packed)
    found, _ = measured(entries, PreferenceModule, [batch], loss="simpo", reduction="sequence")
    theirs, _ = measured(entries, SFTModule, [dict(chosen)])
    assert found["val/perplexity"] == pytest.approx(theirs["val/perplexity"], rel=1e-9)
    assert 0 <= found["val/exact"] <= 1


def test_answers_are_those_of_predict() -> None:
    texts = {
        "bleu": BLEUScore(n_gram=1),
        "rouge": ROUGEScore(rouge_keys="rouge1"),
        "chrf": CHRFScore(),
        "exact": ExactMatch(),
        "wer": WordErrorRate(),
    }
    found, _ = measured({name: MetricEntry("answers", metric) for name, metric in texts.items()})
    module = SFTModule(tiny_model(), generation={"max_new_tokens": 3})
    module.tokenizer = tiny_tokenizer()
    predicted = L.Trainer(**QUIET_TRAINER).predict(module, DataLoader(batches(), batch_size=None))
    rows = [row for batch in predicted or [] for row in batch]
    answers, right = [row["answer"].strip() for row in rows], [row["expected"].strip() for row in rows]
    assert found["val/chrf"] == pytest.approx(float(CHRFScore()(answers, [[text] for text in right])), rel=1e-6)
    assert found["val/wer"] == pytest.approx(float(WordErrorRate()(answers, right)), rel=1e-6)
    assert found["val/exact"] == 0
    assert {"val/bleu", "val/rouge/rouge1_fmeasure"} <= found.keys()


def test_exact_match_takes_any_right_answer() -> None:
    assert float(ExactMatch()(["a ", "b", "c"], [["a"], ["x", " b"], ["d"]])) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("on", "metric", "words"),
    [
        ("logits", BLEUScore(), "metrics.mine: BLEUScore does not fit on: logits"),
        ("logits", MaxMetric(), "MaxMetric does not fit on: logits"),
        ("logits", MulticlassAccuracy(7, average=None), "several numbers at once"),
        ("answers", Perplexity(), "Perplexity does not fit on: answers"),
        ("answers", SQuAD(), "SQuAD does not fit on: answers"),
    ],
)
def test_a_metric_that_fits_neither_is_refused_when_it_is_named(on: Any, metric: Metric, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ValidationMetrics({"mine": MetricEntry(on, metric)})


def test_the_loss_keeps_its_name() -> None:
    with pytest.raises(UserError, match=r"metrics.loss would hide"):
        ValidationMetrics({"loss": MetricEntry("logits", Perplexity())})


def test_classes_are_as_many_as_tokens() -> None:
    with pytest.raises(UserError, match=f"num_classes=7, but the model has {VOCABULARY_SIZE} tokens"):
        measured({"top": MetricEntry("logits", MulticlassAccuracy(7, average="micro"))})
