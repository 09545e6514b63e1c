"""Several objectives in one step: one model, one optimizer, each objective on rows of its own.

Shapes: R rows of all parts of a batch.
"""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from inspect import Parameter, signature
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, get_args

import torch
from torch import Tensor

from lit_ift.data.rows import RowKind
from lit_ift.errors import UserError, told_as
from lit_ift.modules.base import CausalLMModule
from lit_ift.modules.part_schedule import PartChoice, PartSchedule
from lit_ift.modules.stepping import Batch, ExampleLosses
from lit_ift.modules.window import AccumulationWindow, Weighted
from lit_ift.options import Positive, check_options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PER_PART: Final = {"detach_input_embeddings": False, "reduction": "sequence", "share_prompts": False}
"""Options of ``CausalLMModule`` that each part has for itself, with their defaults; the others are of the whole run."""

OF_THE_MODEL: Final = ("tokenizer", "revision", "dtype", "attn_implementation", "trust_remote_code")
"""Options of the run by which a part may load more: a reference model, the tokenizer."""


@dataclass
class ObjectivePart:
    """One of several objectives.

    Args:
        objective: name of a module of this package, or the import path of a ``CausalLMModule``.
        options: its arguments, without those of the model and the run. An object among them, such as the
            ``token_weights`` of TIS-DPO, is written as ``class_path`` and ``init_args``.
        weight: weight of each of its rows in the mean, above 0; with a schedule, the weight of the part in its choice.
        optimum: smallest loss that it can reach, by which ``maxright`` compares it with the others; 0 by default.
    """

    objective: str
    options: dict[str, Any] = field(default_factory=dict)
    weight: Positive = 1.0
    optimum: float | None = None


class MixedModule(CausalLMModule):
    """Trains one model with several objectives at once, such as IFT on instructions and DPO on pairs.

    The loss of an optimizer step is ``sum_i w_i loss_i / sum_i w_i`` over all its rows on all ranks, w_i being the
    weight of the row's part, times the part's own example weight. How many rows a part has in a step is for the data
    to say (the ``weight`` of its sources). Every part has a forward pass of its own, in every step. With
    ``data.interleave_parts`` a step has rows of one part alone, and the parts take turns.

    With a ``schedule`` each optimizer step trains one part, all its micro-batches on all ranks the same one, chosen by
    chance (ALRIGHT) or by need (MAXRIGHT; arXiv:2410.15483). Every step has rows of all parts, spread evenly, and
    those of the parts that are not chosen are dropped unread until the next epoch, as in the authors' code of MAXRIGHT:
    of two parts with equally many rows half of all rows, of n parts all but one in n. What is chosen in step t goes by
    the losses of the steps before t: the authors evaluate at the beginning of a step what is evaluated within it here,
    which makes the choice the same however a step is split; the first step of MAXRIGHT trains the first part.

    Rows must count alike: ``reduction: token`` in one part, which counts a row by its tokens, would drown the rows of
    the others. So either all parts have it, or none.

    The data module routes rows by their source's ``part``, or else by their kind. A part is best named after the
    kind of rows that it takes, then: instruction, preference, unpaired, scored.

    Logged besides the loss: each part's loss and metrics, as ``<part>/<metric>``, means over the part's own rows; with
    a ``schedule`` those of the part that was trained or evaluated, and ``<part>/chosen``, 1 or 0.

    Args:
        model: see ``CausalLMModule``.
        parts: the objectives by name. A part may be a mapping with the fields of ``ObjectivePart``, as checkpoints have
            it.
        schedule: trains one part in each optimizer step, and says which one; None trains all of them.
        **kwargs: see ``CausalLMModule``; of the model and the run as a whole.

    Raises:
        ValueError: there is no part, a part's objective is none, its options or those of the schedule are unfit, or
            rows count by tokens in some parts alone.
    """

    def __init__(
        self,
        model: "str | PreTrainedModel",
        *,
        parts: dict[str, ObjectivePart],
        schedule: PartSchedule | None = None,
        **kwargs: Any,
    ) -> None:
        if not parts:
            raise ValueError("parts={} names no objective. Give at least one.")
        parts = {name: _described(name, part) for name, part in parts.items()}
        strange = [option for option, default in PER_PART.items() if kwargs.get(option, default) != default]
        if strange:
            raise ValueError(f"{strange[0]} is an option of each part. Set it in the part's options.")
        for name, part in parts.items():
            check_options(ObjectivePart, {"weight": part.weight, "optimum": part.optimum}, prefix=f"parts.{name}.")
            if "/" in name or not name:
                raise ValueError(f"The part name {name!r} must not be empty or contain '/'.")
        schedule = _schedule(schedule, parts)
        super().__init__(model, **kwargs)
        self.save_hyperparameters(
            {
                "parts": {name: _plain(name, part) for name, part in parts.items()},
                "schedule": None if schedule is None else asdict(schedule),
            }
        )
        self.part_weights = {name: part.weight for name, part in parts.items()}
        optima = {name: part.optimum or 0.0 for name, part in parts.items()}
        self.choice = None if schedule is None else PartChoice(schedule, self.part_weights, optima)
        self._evaluated = AccumulationWindow()
        # In a plain dictionary, so that the model which they share is saved and optimized once.
        of_model: dict[str, Any] = {option: kwargs[option] for option in OF_THE_MODEL if option in kwargs}
        self.parts: dict[str, CausalLMModule] = {
            name: self._build(name, part, of_model) for name, part in parts.items()
        }
        # Else an untied table, which no part trains, would wait for a gradient.
        self.detach_input_embeddings = all(part.detach_input_embeddings for part in self.parts.values())
        self.lora_rate = min(part.lora_rate for part in self.parts.values())
        by_tokens = [name for name, part in self.parts.items() if part.reduction == "token"]
        if by_tokens and len(by_tokens) < len(self.parts):
            others = ", ".join(name for name in self.parts if name not in by_tokens)
            raise ValueError(
                f"parts.{by_tokens[0]}.options.reduction=token counts a row by its tokens, while a row of {others} "
                "counts once, so that it would hardly be learnt from. Leave reduction out, and give the parts a weight."
            )

    @property
    def kinds(self) -> frozenset[RowKind]:  # type: ignore[override]
        """Rows that any part learns from."""
        return frozenset().union(*(part.kinds for part in self.parts.values()))

    def _build(self, name: str, part: ObjectivePart, of_model: Mapping[str, Any]) -> CausalLMModule:
        cls = _find(name, part.objective)
        shared = set(signature(CausalLMModule.__init__).parameters) - {"self", *PER_PART}
        strange = sorted(shared & set(part.options))
        if strange:
            raise ValueError(
                f"parts.{name}.options has {strange[0]!r}, which the parts share. Set it beside parts, for all of them."
            )
        options = {
            option: _made(f"parts.{name}.options.{option}", value, _kinds_of(cls, option))
            for option, value in part.options.items()
        }
        with told_as((TypeError, ValueError), lambda error: ValueError(f"parts.{name} ({cls.__name__}): {error}")):
            # Whether the shared model keeps its dropout, and that of its adapter, has been decided.
            return cls(self.model_spec, disable_dropout=False, **of_model, **options)

    def prepare(self) -> None:
        super().prepare()
        for part in self.parts.values():
            part.share_model(self)
            part.others_train_embeddings = self.choice is not None
            part.prepare()

    def _present(self, batch: Batch) -> list[tuple[str, CausalLMModule]]:
        """The parts that the batch has rows for, in the state of this module: its model, its trainer."""
        found = [(name, part) for name, part in self.parts.items() if name in batch]
        for _, part in found:
            part.share_model(self)
        return found

    @property
    def _chosen(self) -> str | None:
        """The part that alone is trained in this optimizer step; None for all of them, as in evaluation."""
        training = self._trainer is not None and self.trainer.training
        return self.choice.at(self.trainer.global_step) if training and self.choice is not None else None

    def _of(self, batch: Batch) -> list[tuple[str, CausalLMModule]]:
        """The parts whose rows of the batch count."""
        chosen = self._chosen
        return [(name, part) for name, part in self._present(batch) if chosen in (None, name)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        of_parts: dict[str, dict[str, Any]] = {name: {} for name in self.parts}
        for name, part in self.parts.items():
            part.on_save_checkpoint(of_parts[name])
        checkpoint["of_parts"] = of_parts
        if self.choice is not None:
            self.choice.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.on_load_checkpoint({**checkpoint, **checkpoint.get("of_parts", {}).get(name, {})})
        if self.choice is not None:
            self.choice.load(checkpoint)

    def on_train_start(self) -> None:
        super().on_train_start()
        self._evaluated.clear()

    def on_step_means(self, means: Mapping[str, float]) -> None:
        for name, part in self.parts.items():
            own = f"{name}/"
            of_part = {key.removeprefix(own): mean for key, mean in means.items() if key.startswith(own)}
            if of_part:  # Else the step had no row of it.
                part.on_step_means(of_part)
        if self.choice is None:
            return
        chosen, evaluated = self._chosen, {}
        if not self._evaluated.empty:
            evaluated = self._evaluated.close(self._add_over_ranks).means
            self._evaluated.clear()
        losses = {key: mean for key, mean in evaluated.items() if key.endswith("/loss")}
        self.log_dict({f"train/{key}": mean for key, mean in losses.items()})
        self.log_dict({f"train/{name}/chosen": float(name == chosen) for name in self.parts})
        self.choice.update({**losses, **means})

    def on_step_skipped(self) -> None:
        for part in self.parts.values():
            part.on_step_skipped()
        self._evaluated.clear()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # SFTMix draws anew in each micro-batch.
        for name, part in self._present(batch):
            part.on_train_batch_start(batch[name], batch_idx)

    def start_note(self) -> str:
        return " ".join(f"{name}: {part.start_note()}" for name, part in self.parts.items())

    def check_batch(self, batch: Batch) -> None:
        # Evaluation may have no row for some part; in training the data module sees to it that there are all.
        training = self._trainer is not None and self.trainer.training
        if not set(batch) <= set(self.parts) or not batch or (training and set(batch) != set(self.parts)):
            raise UserError(
                f"The batch has {', '.join(batch)}; a batch for each of the parts {', '.join(self.parts)} is needed. "
                "Use data.class_path=FeedbackDataModule, which makes them."
            )
        for name, part in self._present(batch):
            part.check_batch(batch[name])

    def example_losses(self, batch: Batch) -> ExampleLosses:
        if self._chosen is not None:
            self._evaluate_others(batch)
        losses, _, metrics = self._together(self._of(batch), batch)
        return losses, metrics

    @torch.no_grad()
    def _evaluate_others(self, batch: Batch) -> None:
        """Note the losses of the parts that are not trained, in the steps in which they are evaluated."""
        assert self.choice is not None
        others = [(name, part) for name, part in self._present(batch) if name != self._chosen]
        if not others or not self.choice.evaluates(self.trainer.global_step):
            return
        losses, weights, metrics = self._together(others, batch)
        self._evaluated.add(losses, weights, metrics, weights.new_zeros(()), [])
        torch.clear_autocast_cache()  # Its copies of the weights have no gradient.

    def _together(
        self, parts: list[tuple[str, CausalLMModule]], batch: Batch
    ) -> tuple[Tensor, Tensor, dict[str, Tensor | Weighted]]:
        """Losses and weights of the parts' rows, (R,), and the metrics of each part, with no weight on other rows."""
        losses: list[Tensor] = []
        weights: list[Tensor] = []
        metrics: list[dict[str, Tensor | Weighted]] = []
        for name, part in parts:
            part_losses, part_metrics = part.all_losses(batch[name])
            losses.append(part_losses)
            weights.append(part.example_weights(batch[name]))
            metrics.append({f"{name}/{metric}": values for metric, values in part_metrics.items()})
            metrics[-1][f"{name}/loss"] = part_losses.detach()
        sizes = [len(part_losses) for part_losses in losses]

        def spread(values: Tensor, part: int) -> Tensor:
            return torch.cat([values if i == part else values.new_zeros(size) for i, size in enumerate(sizes)])

        together: dict[str, Tensor | Weighted] = {}
        for i, of_part in enumerate(metrics):
            for metric, given in of_part.items():
                values, own = (given.values, given.weights) if isinstance(given, Weighted) else (given, weights[i])
                together[metric] = Weighted(spread(values, i), spread(own, i))
        return torch.cat(losses), torch.cat(weights), together

    def example_weights(self, batch: Batch) -> Tensor:
        weights = [self.part_weights[name] * part.example_weights(batch[name]) for name, part in self._of(batch)]
        return torch.cat(weights)

    def num_tokens(self, batch: Batch) -> Tensor:
        return torch.stack([part.num_tokens(batch[name]) for name, part in self._of(batch)]).sum()

    def row_ids(self, batch: Batch, batch_idx: int, num_rows: int) -> list[str]:
        own = [row_id for name, _ in self._of(batch) for row_id in batch[name].get("row_ids", [])]
        return own if len(own) == num_rows else super().row_ids({}, batch_idx, num_rows)


def _described(name: str, part: Any) -> ObjectivePart:
    """A part, also from the plain mapping that hyperparameters of a checkpoint hold; its options in plain mappings."""
    if isinstance(part, ObjectivePart):
        return replace(part, options=_without_namespaces(part.options))
    if not isinstance(part, Mapping):
        raise ValueError(f"parts.{name}={part!r} is no part. Give it an objective, and perhaps options and a weight.")
    try:
        return _described(name, ObjectivePart(**part))
    except TypeError as error:
        raise ValueError(f"parts.{name}: {error}. A part has an objective, options and a weight.") from error


def _schedule(schedule: Any, parts: Mapping[str, ObjectivePart]) -> PartSchedule | None:
    """A schedule, also from the plain mapping that hyperparameters of a checkpoint hold."""
    if isinstance(schedule, Namespace):
        schedule = vars(schedule)
    if isinstance(schedule, Mapping):
        try:
            schedule = PartSchedule(**schedule)
        except TypeError as error:
            raise ValueError(f"schedule: {error}. It has a kind, and perhaps seed or evaluate_every.") from error
    if schedule is not None and not isinstance(schedule, PartSchedule):
        raise ValueError(f"schedule={schedule!r} is no schedule. Give it a kind, alright or maxright.")
    if schedule is not None and len(parts) == 1:
        raise ValueError("schedule chooses among parts, and there is one alone. Leave it out, or add a part.")
    unused = [name for name, part in parts.items() if part.optimum is not None]
    if unused and (schedule is None or schedule.kind != "maxright"):
        raise ValueError(f"parts.{unused[0]}.optimum has an effect with schedule.kind=maxright alone. Leave it out.")
    return schedule


def _without_namespaces(value: Any) -> Any:
    """A value with mappings in the place of the command line's namespaces, which describe objects among options."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: _without_namespaces(item) for key, item in value.items()}
    return [_without_namespaces(item) for item in value] if isinstance(value, list) else value


def _find(name: str, objective: str) -> type[CausalLMModule]:
    import lit_ift.modules as modules

    offered = ", ".join(name for name in modules.__all__ if _is_objective(getattr(modules, name)))
    remedy = f"Name one of {offered}, or give the import path of a class."
    found = _imported(f"parts.{name}.objective", objective, remedy)
    if not _is_objective(found):
        raise ValueError(f"parts.{name}.objective={objective!r} is no objective on a language model. {remedy}")
    objective_class: type[CausalLMModule] = found
    return objective_class


def _is_objective(found: Any) -> bool:
    """Whether it is a module that says what a loss is, and has no parts itself."""
    if not (isinstance(found, type) and issubclass(found, CausalLMModule)) or issubclass(found, MixedModule):
        return False
    return any(
        getattr(found, method) is not getattr(CausalLMModule, method)
        for method in ("example_losses", "per_example_loss")
    )


def _plain(name: str, part: ObjectivePart) -> dict[str, Any]:
    """A part without the objects among its options: checkpoints are loaded with weights_only, which takes none."""
    hidden = _find(name, part.objective).not_saved
    kept = {key: value for key, value in part.options.items() if key not in hidden or _is_described(value)}
    return asdict(replace(part, options=kept))


def _is_described(value: Any) -> bool:
    """Whether a value stands for an object, as ``class_path`` and ``init_args``."""
    return isinstance(value, Mapping) and "class_path" in value


def _made(where: str, value: Any, kinds: tuple[type, ...]) -> Any:
    """The object of one of some kinds that ``class_path`` and ``init_args`` describe; any other value as it is."""
    if not _is_described(value):
        return value
    path, strange = value["class_path"], sorted(set(value) - {"class_path", "init_args"})
    if strange:
        raise ValueError(f"{where} has {strange[0]!r} beside class_path. Put the arguments into init_args.")
    cls = _imported(f"{where}.class_path", path, "Give the import path of a class.")
    if not kinds or not isinstance(cls, type) or not issubclass(cls, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds) or "no object"
        raise ValueError(f"{where}.class_path={path!r}: the option takes {wanted}, and this is no such class.")
    with told_as((TypeError, ValueError), lambda error: ValueError(f"{where} ({cls.__name__}): {error}")):
        return cls(**(value.get("init_args") or {}))


def _kinds_of(cls: type, option: str) -> tuple[type, ...]:
    """The classes among what an option of a class, or of one that it hands its arguments on to, is annotated with."""
    for parent in cls.__mro__:
        parameter = signature(parent).parameters.get(option) if "__init__" in vars(parent) else None
        if parameter is not None:
            found = get_args(parameter.annotation) or (parameter.annotation,)
            return tuple(kind for kind in found if isinstance(kind, type) and kind not in (Parameter.empty, NoneType))
    return ()


def _imported(where: str, path: Any, remedy: str) -> Any:
    """What an import path names; a name alone is one of ``lit_ift.modules``."""
    module, _, attribute = str(path).rpartition(".")
    try:
        return getattr(import_module(module or "lit_ift.modules"), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{where}={path!r} cannot be imported ({error}). {remedy}") from error
