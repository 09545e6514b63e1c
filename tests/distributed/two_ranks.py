"""Run by torchrun or alone: trains tiny models with many objectives and writes what each rank saw.

Usage: two_ranks.py OUT UNTIED TIED ROWS FEEDBACK [CASE ...]

Alone it trains in one process without a strategy, which is what the runs of two ranks are compared with.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

# torchrun starts this file alone: the tests' folder is not on the path.
sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import tiny_model, tiny_tokenizer
from torchmetrics.classification import MulticlassCalibrationError
from torchmetrics.text import CharErrorRate, Perplexity, ROUGEScore
from unit.modules.test_reference import Data, WithReference

from lit_ift import (
    FeedbackDataModule,
    IFTModule,
    InstructionDataModule,
    KTOModule,
    MixedModule,
    PreferenceModule,
    SFTMixModule,
    SFTModule,
    UFTModule,
)
from lit_ift.callbacks import ExactMatch, HuggingFaceExport, MetricEntry, Samples, ValidationMetrics
from lit_ift.callbacks.half_fine_tuning import HalfFineTuning
from lit_ift.checkpoints.random_state import RandomState
from lit_ift.data import Source, TaskItem
from lit_ift.distributed import FSDP2Strategy
from lit_ift.distributed.shard import gathered, is_sharded
from lit_ift.modules import ObjectivePart, PartSchedule, row_passes
from lit_ift.modules.kept_arrays import weights_digest
from lit_ift.modules.optim import ConstantSchedule
from lit_ift.modules.reference import ReferencePolicy

RANKS = int(os.environ.get("WORLD_SIZE", 1))
RANK = int(os.environ.get("RANK", 0))
SHARDED = "WORLD_SIZE" in os.environ

PARTS = {
    "instruction": ObjectivePart("IFTModule", {"lam": 0.3}),
    "preference": ObjectivePart("PreferenceModule", {"options": {"beta": 0.2}, "reference": "model"}, weight=0.5),
}
LORA = {"r": 4, "lora_alpha": 8}
OPTIMA = {"instruction": 4.0, "preference": 0.0}
"""By which MAXRIGHT takes now one part, now the other."""
STOPS_AFTER = 4
"""Optimizer steps after which a checkpoint is written: inside the second epoch of three."""


class Saves(Callback):
    """Writes a checkpoint after some optimizer steps.

    Args:
        path: of the checkpoint.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == STOPS_AFTER:
            trainer.save_checkpoint(self.path)


class Record(Callback):
    """Rows and metrics of every optimizer step and validation, and the weights that training begins with."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.validations: list[float] = []
        self.rows: list[str] = []
        self.digest = ""
        self.is_sharded = False

    def on_fit_start(self, trainer: L.Trainer, module: Any) -> None:
        self.digest = weights_digest(module.model)
        self.is_sharded = is_sharded(module.model)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.rows += batch.get("row_ids", [])
        if trainer.global_step > len(self.steps):
            left_out = ("train/tokens_per_s", "train/lr")
            metrics = trainer.callback_metrics.items()
            self.steps.append({k: float(v) for k, v in metrics if k.startswith("train/") and k not in left_out})

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if not trainer.sanity_checking:
            self.validations.append(float(trainer.callback_metrics["val/loss"]))


class Bad(SFTModule):
    """Rows of rank 0 have an infinite loss in step 1, and the gradient of step 3 is none."""

    def example_losses(self, batch: Any) -> Any:
        losses, metrics = super().example_losses(batch)
        if self.trainer.training and self.trainer.global_step == 1 and RANK == 0:
            losses = losses * torch.inf
        if self.trainer.training and self.trainer.global_step == 3:
            losses = losses + torch.sqrt(losses - losses)  # 0, with an infinite slope times 0.
        return losses, metrics


class Questions(InstructionDataModule):
    """Five questions, so that two ranks that answer two at a time have unequal numbers of batches."""

    def eval_items(self, limit_per_task: int | None = None) -> list[TaskItem]:
        turns = [[{"role": "user", "content": f"Question {i} " + "x" * i}] for i in range(5)]
        return [TaskItem("spell", messages, "b", f"question {i}") for i, messages in enumerate(turns)]

    def score(self, item: TaskItem, answer: str) -> float:
        return float("b" in answer)


def main(out: str, untied: str, tied: str, rows: str, feedback: str, *only: str) -> None:
    torch.set_num_threads(1)
    row_passes.BATCH_TOKENS = 200  # type: ignore[misc]  # 7 batches of pairs: one rank has one more.
    files = {path.stem: str(path) for path in sorted(Path(feedback).iterdir())}

    def instructions(size: int = 8, **options: Any) -> Any:
        return InstructionDataModule(train=rows, val=rows, batch_size=size // RANKS, **options)

    def answers(*kinds: str, size: int = 4, **options: Any) -> Any:
        found = [files[kind] for kind in kinds]
        return FeedbackDataModule(found, val=found, batch_size=size // RANKS, tokenizer=untied, **options)

    def fit(
        module: Any, data: Any, *callbacks: Callback, strategy: Any = None, resume: str | None = None, **options: Any
    ) -> dict[str, Any]:
        given = {key: options.pop(key) for key in ("reshard_after_forward", "offload", "replicas") if key in options}
        record = Record()
        trainer = L.Trainer(
            accelerator="cpu",
            devices=RANKS,
            strategy=(strategy or FSDP2Strategy(**given)) if SHARDED else "auto",
            **{"precision": "32-true", "max_epochs": 1, "gradient_clip_val": 0.5, **options},
            default_root_dir=Path(out).parent,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[record, *callbacks],
        )
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=resume and True)
        weights = {name: tensor.double() for name, tensor in gathered(module.model)}
        again = trainer.validate(module, datamodule=data, verbose=False)
        return {
            "rows": record.rows,
            "steps": record.steps,
            "validations": [*record.validations, again[0]["val/loss"]],
            "digest": record.digest,
            "is_sharded": record.is_sharded,
            "weights": {name: [float(w.sum()), float(w.norm())] for name, w in weights.items()},
            "module": module,
            "data": data,
        }

    def resumed(name: str, module: Callable[[], Any], data: Callable[[], Any], **options: Any) -> dict[str, Any]:
        """A run, and under ``rest`` what is left of it after a checkpoint, by another module."""
        checkpoint = f"{out}.{name}.ckpt"
        found = fit(module(), data(), RandomState(), Saves(checkpoint), max_epochs=3, **options)
        rest = fit(module(), data(), RandomState(), resume=checkpoint, max_epochs=3, **options)
        for run in (found, rest):
            if reused := getattr(getattr(run["module"], "token_input", None), "reused", None):
                run["predictions"] = reused._old.tokens.tolist()
        return {**found, "rest": {key: value for key, value in rest.items() if key not in ("module", "data")}}

    def reuses(kind: str, **options: Any) -> dict[str, Any]:
        def data() -> Any:
            return instructions(cache_dir=f"{out}.{kind}.{options}")  # So that each run predicts for itself.

        def module() -> Any:
            return make(IFTModule, lam=0.3, reuse_predictions=kind)

        return resumed(f"reuse {kind} {len(options)}", module, data, **options)

    def by_turns(schedule: PartSchedule, **options: Any) -> dict[str, Any]:
        is_by_need = schedule.kind == "maxright"
        parts = {
            name: ObjectivePart(part.objective, part.options, 0.5, OPTIMA[name] if is_by_need else None)
            for name, part in PARTS.items()
        }
        return resumed(
            f"{schedule.kind} {len(options)}",
            # With a state of the optimizer for all weights, IFT's embeddings among them.
            lambda: pair(MixedModule, parts=parts, schedule=schedule, momentum=0.9),
            lambda: answers("instruction", "preference"),
            **options,
        )

    alright, maxright = PartSchedule("alright", seed=3), PartSchedule("maxright", evaluate_every=3)

    def make(
        cls: Any,
        model: Any = untied,
        *,
        dtype: str | None = "float64",
        lr: float = 0.05,
        momentum: float = 0.0,
        **options: Any,
    ) -> Any:
        L.seed_everything(1, verbose=False)
        return cls(
            model,
            dtype=dtype,
            # Without adaptive steps, so that a wrong scale of the gradient cannot hide.
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum),
            lr_scheduler=lambda optimizer: ConstantSchedule(optimizer, warmup=0),
            **options,
        )

    def pair(cls: Any = PreferenceModule, **options: Any) -> Any:
        cache = f"{out}.reference"
        extra = {"reference_cache": cache} if options.get("reference") == "cached" else {}
        return make(cls, lr=0.02, **extra, **options)

    def ready(tied: bool = False) -> Any:
        return tiny_model(tied=tied, seed=3 + RANK, vocab_size=len(tiny_tokenizer()))

    def quiet_trainer(**options: Any) -> L.Trainer:
        return L.Trainer(
            accelerator="cpu",
            devices=RANKS,
            strategy=FSDP2Strategy() if SHARDED else "auto",
            default_root_dir=Path(out).parent,
            logger=False,
            enable_progress_bar=False,
            **options,
        )

    def predicts() -> dict[str, Any]:
        module = make(SFTModule, generation={"max_new_tokens": 5, "batch_size": 2})
        data = InstructionDataModule(train=rows, predict=rows, batch_size=6 // RANKS)
        found = quiet_trainer().predict(module, datamodule=data)
        return {"answers": {row["row_id"]: row["answer"] for batch in found or [] for row in batch}}

    def answers_questions() -> dict[str, Any]:
        callback = Samples(["Say b", "Say c"], every_n_steps=1, max_new_tokens=4, batch_size=2, show=5)
        data = Questions(train=rows, val=rows, batch_size=8 // RANKS)
        steps = fit(make(SFTModule), data, callback, max_steps=2)["steps"]
        return {"answers": {f"{a.row_id} {a.step}": a.answer for a in callback.shown}, "steps": steps}

    def measures() -> dict[str, Any]:
        classes = len(tiny_tokenizer())
        given: dict[str, Any] = {
            "logits": [Perplexity(), MulticlassCalibrationError(classes)],
            "answers": [CharErrorRate(), ROUGEScore(rouge_keys="rouge1"), ExactMatch()],
        }
        entries = {type(metric).__name__: MetricEntry(on, metric) for on, some in given.items() for metric in some}
        module = make(SFTModule, reduction="token", generation={"max_new_tokens": 4})
        # 5 rows: one rank has one more, and in the last batch the other one has a row without tokens.
        trainer = quiet_trainer(callbacks=[ValidationMetrics(entries)])
        data = InstructionDataModule(val=Source(rows, max_rows=5), batch_size=2 // RANKS)
        return {"found": trainer.validate(module, datamodule=data, verbose=False)[0]}

    def exports(lora: bool) -> dict[str, Any]:
        folder = f"{out}.{'adapter' if lora else 'model'}"
        module = make(SFTModule, tied, dtype="float32", lora=LORA if lora else None)
        return {**fit(module, instructions(), HuggingFaceExport(folder), max_steps=2), "folder": folder}

    def scores() -> dict[str, Any]:
        """What the initial policy gives a tiny data set, and its passes through the model."""
        data: Any = Data()
        module = WithReference(tiny_model(), reference=ReferencePolicy("cached", cache_dir=f"{out}.scores"))
        prepare, passes = module.configure_model, []

        def configure_model() -> None:
            prepare()
            passes.append(module.passes)

        module.configure_model = configure_model  # type: ignore[method-assign]
        trainer = L.Trainer(
            accelerator="cpu",
            devices=RANKS,
            strategy="ddp" if SHARDED else "auto",
            max_steps=1,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        large, row_passes.BATCH_TOKENS = row_passes.BATCH_TOKENS, 20  # type: ignore[misc]  # Several batches.
        trainer.fit(module, datamodule=data)
        row_passes.BATCH_TOKENS = large  # type: ignore[misc]
        return {"logps": data.rows().reference_logps.tolist(), "passes": passes}

    cases: dict[str, Callable[[], dict[str, Any]]] = {
        "ift": lambda: fit(make(IFTModule, lam=0.3), instructions(), max_epochs=2),
        "ift float32": lambda: fit(make(IFTModule, dtype="float32", lam=0.3), instructions()),
        # Windows of two micro-batches, the last of which has a row on one rank and none on the other.
        "ift tied": lambda: fit(make(IFTModule, tied, lam=0.3), instructions(4), accumulate_grad_batches=2),
        "ift ready-made": lambda: fit(make(IFTModule, ready(), dtype=None, tokenizer=untied), instructions()),
        "ift packed": lambda: fit(make(IFTModule, lam=0.3), instructions(packing=True, max_length=128)),
        "ift held": lambda: fit(make(IFTModule, lam=0.3), instructions(), reshard_after_forward=False),
        "ift checkpointed": lambda: fit(make(IFTModule, lam=0.3, gradient_checkpointing=True), instructions()),
        "ift shared": lambda: fit(make(IFTModule, lam=0.3, share_prompts=True), instructions(4)),
        "ift lora": lambda: fit(make(IFTModule, lam=0.3, lora=LORA), instructions()),
        "ift replicas": lambda: fit(make(IFTModule, lam=0.3), instructions(), replicas=RANKS),
        "ift bf16-mixed": lambda: fit(make(IFTModule, dtype="float32"), instructions(), precision="bf16-mixed"),
        "ift bf16-true": lambda: fit(make(IFTModule, dtype=None), instructions(), precision="bf16-true"),
        "ddp": lambda: fit(make(IFTModule), instructions(), strategy="ddp", max_epochs=2),
        "ddp by token": lambda: fit(make(SFTModule, reduction="token"), instructions(), strategy="ddp", max_epochs=2),
        "ddp accumulating": lambda: fit(
            make(IFTModule), instructions(4), strategy="ddp", accumulate_grad_batches=2, max_epochs=2
        ),
        "sft token": lambda: fit(make(SFTModule, tied, reduction="token"), instructions(4), accumulate_grad_batches=2),
        "sft every second": lambda: fit(make(SFTModule, gradient_checkpointing=2), instructions()),
        "sft offload": lambda: fit(make(SFTModule), instructions(), offload=True),
        "sft half": lambda: fit(make(SFTModule), instructions(), HalfFineTuning(every_n_steps=1)),
        "sft bad steps": lambda: fit(
            make(Bad, max_bad_steps=2, bad_step_norm=50.0), instructions(4), accumulate_grad_batches=2, max_epochs=2
        ),
        "sftmix": lambda: fit(make(SFTMixModule), instructions()),
        "dpo cached": lambda: fit(pair(reference="cached"), answers("preference")),
        "dpo model": lambda: fit(pair(reference="model"), answers("preference", packing=True)),
        "dpo shared": lambda: fit(pair(reference="model", share_prompts=True), answers("preference")),
        "dpo lora": lambda: fit(pair(reference="adapter", lora=LORA), answers("preference")),
        "dpo ready-made": lambda: fit(
            pair(model=ready(tied=True), reference="model", tokenizer=untied), answers("preference")
        ),
        "tdpo model": lambda: fit(pair(loss="tdpo", reference="model"), answers("preference")),
        "tdpo lora": lambda: fit(pair(loss="tdpo", lora=LORA), answers("preference")),
        "kto": lambda: fit(pair(KTOModule, reference="cached"), answers("unpaired")),
        "uft": lambda: fit(pair(UFTModule, reference="cached"), answers(*files)),
        "mixed": lambda: fit(pair(MixedModule, parts=PARTS), answers("instruction", "preference")),
        "reuse initial": lambda: reuses("initial"),
        "reuse initial, ddp": lambda: reuses("initial", strategy="ddp"),
        "reuse epoch": lambda: reuses("epoch"),
        "reuse epoch, ddp": lambda: reuses("epoch", strategy="ddp"),
        "alright": lambda: by_turns(alright),
        "alright, ddp": lambda: by_turns(alright, strategy="ddp"),
        "maxright": lambda: by_turns(maxright),
        "maxright, ddp": lambda: by_turns(maxright, strategy="ddp"),
        "predict": predicts,
        "tasks": answers_questions,
        "metrics": measures,
        "export": lambda: exports(lora=False),
        "export lora": lambda: exports(lora=True),
        "scores": scores,
        "scores again": scores,
    }
    results = {}
    for name in only or cases:
        results[name] = {key: value for key, value in cases[name]().items() if key not in ("module", "data")}
    Path(f"{out}.{RANK}").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
