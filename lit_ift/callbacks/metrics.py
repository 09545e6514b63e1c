"""Any metric of torchmetrics on the rows of a validation or a test.

Shapes: n trained tokens of a chunk, V vocabulary size, D hidden size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics import Metric

from lit_ift.errors import UserError
from lit_ift.losses.logprobs import chunk_size_for, target_mask
from lit_ift.losses.masking import at_least_float32
from lit_ift.modules.batch_answers import answers_to
from lit_ift.modules.feedback_rows import first_answers, is_feedback
from lit_ift.modules.packed import unpacked
from lit_ift.modules.stepping import Batch
from lit_ift.ranks import of_every_rank

if TYPE_CHECKING:
    from lit_ift.modules.base import CausalLMModule

Form = Callable[[Any, Any], tuple[Any, Any]]
"""Arguments of `Metric.update` from what there is and what is right."""

FORMS: Final[dict[str, tuple[Form, ...]]] = {
    # As text metrics have it, (1, n, V) and (1, n); as classification has it, (n, V) and (n,).
    "logits": (lambda logits, ids: (logits[None], ids[None]), lambda logits, ids: (logits, ids)),
    # Several right answers to each, or one.
    "answers": (lambda texts, right: (texts, [[text] for text in right]), lambda texts, right: (texts, right)),
}

TRIAL_TOKENS, TRIAL_CLASSES = 4, 11

DTYPES: Final = (torch.float32,) if torch.backends.mps.is_available() else (torch.float64, torch.float32)
"""In which a metric keeps its sums, the first that it works with; MPS has no float64."""


@dataclass
class MetricEntry:
    """A metric, and what it is computed on.

    Args:
        on: ``logits`` of the trained tokens, against their ids; or ``answers``, generated as by ``predict``, against
            the rows' own.
        metric: an object of a class of torchmetrics, or of one that derives from its ``Metric``.
    """

    on: Literal["logits", "answers"]
    metric: Metric


class ExactMatch(Metric):
    """Share of answers that are a right one, white space at the borders left out."""

    full_state_update = False
    right: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, answers: Sequence[str], expected: Sequence[Sequence[str]]) -> None:
        """Count answers, each of which has one or more right ones."""
        for answer, right in zip(answers, expected, strict=True):
            self.right += answer.strip() in [text.strip() for text in right]
            self.total += 1

    def compute(self) -> Tensor:
        """In [0, 1]."""
        return self.right / self.total


class ValidationMetrics(Callback):
    """Logs metrics of torchmetrics for each validation and test, exact over batches and ranks.

    ``on: logits`` takes one more pass on the true tokens of a row, of feedback on those of its first answer, and
    updates the metric a chunk of trained tokens at a time, so that logits of a whole batch never exist. ``on: answers``
    lets the model answer each row once for all its metrics, by the module's ``generation``; ranks bring their answers
    together, in any number. Logged as ``val/<name>`` and ``test/<name>``, or as ``val/<name>/<key>`` where a metric
    gives several numbers.

    Args:
        entries: metrics by name.

    Raises:
        UserError: a metric does not take what it is computed on, or gives more than single numbers.
    """

    def __init__(self, entries: Mapping[str, MetricEntry]) -> None:
        if "loss" in entries:
            raise UserError("metrics.loss would hide the loss of the objective: give it another name.")
        self._logits = dict(_fitted(entries, "logits"))
        self._answers = dict(_fitted(entries, "answers"))
        self._texts: list[tuple[str, str]] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: "CausalLMModule") -> None:  # type: ignore[override]
        self._begin(pl_module)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: "CausalLMModule") -> None:  # type: ignore[override]
        self._begin(pl_module)

    def on_validation_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: "CausalLMModule", outputs: Any, batch: Batch, batch_idx: int, *_: Any
    ) -> None:
        self._see(trainer, pl_module, batch, batch_idx)

    def on_test_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: "CausalLMModule", outputs: Any, batch: Batch, batch_idx: int, *_: Any
    ) -> None:
        self._see(trainer, pl_module, batch, batch_idx)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: "CausalLMModule") -> None:  # type: ignore[override]
        self._log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: "CausalLMModule") -> None:  # type: ignore[override]
        self._log(trainer, pl_module, "test")

    def _begin(self, module: "CausalLMModule") -> None:
        self._texts = []
        width = module.model.get_output_embeddings().weight.shape[0]
        for name, (metric, _) in self._logits.items():
            classes = getattr(metric, "num_classes", None)
            if classes not in (None, width):
                raise UserError(f"metrics.{name}: num_classes={classes}, but the model has {width} tokens: set that.")
        for metric, _ in (*self._logits.values(), *self._answers.values()):
            metric.to(module.device)
            metric.reset()

    def _see(self, trainer: L.Trainer, module: "CausalLMModule", batch: Batch, batch_idx: int) -> None:
        # The parts of a mixed objective have a batch each.
        batches: list[Batch] = [batch] if "input_ids" in batch else [b for b in batch.values() if isinstance(b, dict)]
        for part in batches:
            rows = first_answers(unpacked(part)) if is_feedback(part) else part
            if self._logits:
                with trainer.precision_plugin.val_step_context():
                    module.in_forward(lambda rows=rows: self._see_tokens(module, rows))  # type: ignore[misc]
            if self._answers:
                found = answers_to(module, part, batch_idx)
                self._texts += [(row["answer"].strip(), row["expected"].strip()) for row in found]

    def _see_tokens(self, module: "CausalLMModule", batch: Batch) -> None:
        mask = target_mask(batch["labels"])
        hidden_ND = module.hidden_states(module.embed(batch["input_ids"]), batch)[:, :-1][mask]
        ids_N = batch["labels"][:, 1:][mask]
        size = chunk_size_for(module.model.get_output_embeddings().weight.shape[0])
        for start in range(0, len(ids_N), size):
            logits_nV = at_least_float32(module.head(hidden_ND[start : start + size]))
            for metric, form in self._logits.values():
                metric.update(*form(logits_nV, ids_N[start : start + size]))

    def _log(self, trainer: L.Trainer, module: "CausalLMModule", stage: str) -> None:
        if self._answers:
            # On each rank those of all: not every metric adds up lists of unequal length.
            pairs = [pair for of_rank in of_every_rank(self._texts) for pair in of_rank]
            texts, right = zip(*pairs, strict=True)
            for metric, form in self._answers.values():
                metric.update(*form(list(texts), list(right)))
        for name, (metric, _) in {**self._logits, **self._answers}.items():
            for key, number in _numbers(name, metric.compute()).items():
                module.log(f"{stage}/{key}", number, sync_dist=True)


def _fitted(
    entries: Mapping[str, MetricEntry], on: Literal["logits", "answers"]
) -> Iterator[tuple[str, tuple[Metric, Form]]]:
    """The metrics on logits or on answers, with the form of arguments that each of them takes.

    Raises:
        UserError: it takes none.
    """
    for name, entry in entries.items():
        if entry.on == on:
            problems: list[str] = []
            found = next(_working(entry, problems), None)
            if found is None:
                given = {"logits": "logits (1, n, V) or (n, V) with n ids", "answers": "lists of texts"}[on]
                raise UserError(
                    f"metrics.{name}: {type(entry.metric).__name__} does not fit on: {on}. There it is given {given}, "
                    f"and has to give single numbers. {' '.join(dict.fromkeys(problems))}"
                )
            yield name, found


def _working(entry: MetricEntry, problems: list[str]) -> Iterator[tuple[Metric, Form]]:
    """Forms of arguments that a metric was tried with and works with; what the others brought goes to `problems`."""
    classes = getattr(entry.metric, "num_classes", None) or TRIAL_CLASSES
    ids = torch.arange(TRIAL_TOKENS) % classes
    given = {
        "logits": (torch.arange(TRIAL_TOKENS * classes).reshape(TRIAL_TOKENS, classes).sin() * 3, ids),
        "answers": (["a b c d e", "f"], ["a b c d e", "g"]),
    }[entry.on]
    for form in FORMS[entry.on]:
        for dtype in DTYPES:
            metric = entry.metric.clone().set_dtype(dtype)
            metric.sync_on_compute = False  # Another rank may not try just now.
            try:
                metric.update(*form(*given))
                numbers = _numbers("", metric.compute())
            except Exception as error:  # Whatever a metric of any make raises at what it does not take.
                problems.append(f"{type(error).__name__}: {str(error).strip()}")
                continue
            if any(torch.as_tensor(number).numel() != 1 for number in numbers.values()):
                problems.append("It gives several numbers at once, as with average: none.")
                continue
            metric.reset()
            metric.sync_on_compute = entry.on == "logits"
            yield metric, form


def _numbers(name: str, value: Any) -> dict[str, Any]:
    """What a metric has computed, by name."""
    return {f"{name}/{key}": number for key, number in value.items()} if isinstance(value, Mapping) else {name: value}
