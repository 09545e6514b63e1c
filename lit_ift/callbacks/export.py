"""The trained model as a Hugging Face folder, written and checked when ``fit`` ends."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_ift.callbacks.samples import Samples
from lit_ift.checkpoints.writing import why_not_writable
from lit_ift.distributed.shard import gathered, is_sharded
from lit_ift.errors import UserError
from lit_ift.models.lora import is_adapted, is_adapter_weight
from lit_ift.modules.base import CausalLMModule
from lit_ift.staging import scratch_folder

if TYPE_CHECKING:
    from lit_ift.export.card import ExportMetadata
    from lit_ift.export.verify import ShardedWeights


class HuggingFaceExport(Callback):
    """Writes what ``AutoModelForCausalLM.from_pretrained`` opens, then opens it and compares the logits.

    The folder holds safetensors, the tokenizer's files unchanged, the generation config with the tokens that end a
    turn, and a model card with configuration, metrics and data report. The weights are those of the last step. With
    LoRA it is a standard adapter folder, which ``peft.AutoPeftModelForCausalLM`` opens and ``lit-ift merge`` makes a
    whole model of. A sharded model is gathered on rank 0, tensor by tensor into a file beside the folder, which is
    deleted when the folder is written.

    Args:
        dirpath: folder to write; ``<log_dir>/model`` by default, or ``model-1`` and so on beside earlier ones.
        dtype: of the written weights; that of training by default.
        overwrite: replace an earlier export in ``dirpath``.
        enabled: false writes nothing.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        dtype: str | None = None,
        overwrite: bool = False,
        enabled: bool = True,
    ) -> None:
        self.dirpath = dirpath
        self.dtype = dtype
        self.overwrite = overwrite
        self.enabled = enabled
        self.folder: Path | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.enabled:
            return
        if self.dirpath is not None:
            from lit_ift.export.write import check_free

            check_free(Path(self.dirpath), self.overwrite)
            problem = why_not_writable(Path(self.dirpath).parent) if trainer.is_global_zero else None
            if problem := trainer.strategy.broadcast(problem):
                raise UserError(f"The model cannot be written to {self.dirpath}: {problem}. Set export.dirpath.")
        if isinstance(pl_module, CausalLMModule) and is_adapted(pl_module.model):
            from lit_ift.export.write import base_of

            base_of(pl_module.model)  # Asked now, an adapter without a base to name is no loss of training time.
        if isinstance(pl_module, CausalLMModule):
            from lit_ift.export.tokenizer_files import original_files

            original_files(_files_of_tokenizer(pl_module))

    def on_fit_end(self, trainer: L.Trainer, pl_module: "CausalLMModule") -> None:  # type: ignore[override]
        if not self.enabled or trainer.fast_dev_run or trainer.interrupted:  # type: ignore[attr-defined]
            return
        run = trainer.log_dir  # Lightning answers with a broadcast: all ranks must ask, and only here.
        target = self._target(run)
        if target is None:
            rank_zero_warn("No model folder was written: set export.dirpath, or use a logger that has a folder.")
            return
        with ExitStack() as stack:
            scratch = None
            if is_sharded(pl_module.model) and trainer.is_global_zero:
                scratch = stack.enter_context(scratch_folder(target))
            sharded = _gathered(trainer, pl_module, scratch) if is_sharded(pl_module.model) else None
            if trainer.is_global_zero:
                self.folder = self._export(trainer, pl_module, target, run, sharded)
        trainer.strategy.barrier()

    def _target(self, run: str | None) -> Path | None:
        if self.dirpath is not None:
            return Path(self.dirpath)
        if run is None:
            return None
        target, number = Path(run) / "model", 0
        while target.exists() and not self.overwrite:  # A run that was continued in its own folder.
            number += 1
            target = Path(run) / f"model-{number}"
        return target

    def _export(
        self,
        trainer: L.Trainer,
        module: "CausalLMModule",
        target: Path,
        run: str | None,
        sharded: "ShardedWeights | None",
    ) -> Path:
        from lit_ift.export import export_model, verify_export

        tokenizer, files = module.tokenizer, _files_of_tokenizer(module)
        folder = export_model(
            module.model,
            target,
            tokenizer=tokenizer,
            tokenizer_source=files,
            metadata=self._metadata(trainer, module, run),
            dtype=self.dtype,
            state_dict=None if sharded is None else sharded.weights,
            overwrite=self.overwrite,
        )
        figures = verify_export(module.model, folder, tokenizer, tokenizer_source=files, sharded=sharded)
        what = "LoRA adapter" if is_adapted(module.model) else "Hugging Face model"
        rank_zero_info(
            f"{what}: {folder} (loaded again: logits differ by at most "
            f"{figures['max_abs_logit_diff']:.1e}, template ids equal: {figures['template_ids_equal']})"
        )
        return folder

    def _metadata(self, trainer: L.Trainer, module: "CausalLMModule", run: str | None) -> "ExportMetadata":
        from lit_ift.export.card import run_metadata

        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Samples):
                for task, row in callback.accuracies().items():
                    metrics |= {f"tasks/{task}, {when}": share for when, share in row.items()}
        reports = getattr(getattr(trainer, "datamodule", None), "reports", {})
        return run_metadata(
            module_class=type(module).__name__,
            base_model=module.model_spec,
            source=module.model_source,
            config=_configuration(trainer, module, run),
            metrics=metrics,
            reports={split: report.summary() for split, report in reports.items()},
            tokenizer=module.tokenizer,
        )


def _files_of_tokenizer(module: CausalLMModule) -> str | None:
    return None if module.tokenizer_source is None else module.tokenizer_source.files


def _gathered(trainer: L.Trainer, module: CausalLMModule, scratch: Path | None) -> "ShardedWeights":
    """The weights to export, tensor by tensor from all ranks into a file in `scratch`, which only rank 0 has.

    Raises:
        UserError: the file cannot be written.
    """
    import torch

    from lit_ift.export.memory_mapped import memory_mapped
    from lit_ift.export.verify import ShardedWeights, check_logits

    model = module.model
    with torch.no_grad():
        logits = module.in_forward(lambda: check_logits(model)).cpu()
    keep = is_adapter_weight if is_adapted(model) else None
    entries = gathered(model, keep=keep)
    weights: dict[str, torch.Tensor] = {}
    problem = None
    if scratch is not None:
        try:
            weights = memory_mapped(entries, scratch / "weights")
        except OSError as error:
            problem = error
    for _ in entries:  # The other ranks, or what is left of it where the disk is full: all must gather to the end.
        pass
    if problem is not None:
        raise UserError(
            f"{scratch}: the weights cannot be gathered for the export: {problem}. Free space, and export the last "
            "checkpoint: lit-ift export CHECKPOINT OUTPUT"
        ) from problem
    sharding = model._sharding
    return ShardedWeights(weights, logits, sharding.compute_dtype, sharding.device.type != "cpu")


def _configuration(trainer: L.Trainer, module: "CausalLMModule", run: str | None) -> dict[str, Any]:
    """What the command line composed, or, without one, the hyperparameters of module and data."""
    names = [c.config_filename for c in trainer.callbacks if isinstance(c, SaveConfigCallback)]  # type: ignore[attr-defined]
    saved = Path(run) / names[0] if run and names else None
    if saved is not None and saved.is_file():
        values: dict[str, Any] = yaml.safe_load(saved.read_text(encoding="utf-8"))
        return values
    data = getattr(trainer, "datamodule", None)
    return {"model": dict(module.hparams), "data": dict(getattr(data, "hparams", {}))}
