"""A Hugging Face folder from a training checkpoint, after the fact."""

import re
from pathlib import Path
from typing import Any

from lit_ift.errors import UserError
from lit_ift.export.card import run_metadata
from lit_ift.export.checkpoint_model import TrainedCheckpoint
from lit_ift.export.merge import merge_adapter
from lit_ift.export.verify import verify_export
from lit_ift.export.write import check_free, export_model
from lit_ift.models.lora import is_adapted
from lit_ift.staging import scratch_folder


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    config: Path | None = None,
    model: str | None = None,
    tokenizer: str | None = None,
    dtype: str | None = None,
    max_shard_size: str | None = None,
    merge: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Write what ``fit`` exports at its end, from a checkpoint of the run, and compare it with the checkpoint.

    One process does it, without a GPU. Weights are mapped from the disk or read one at a time, so memory holds the
    largest of them and not the model, unless ``merge`` is set. Of a folder of shards, a copy of the weights is made
    beside ``output`` meanwhile. Optimizer state is not read.

    Args:
        checkpoint: a ``.ckpt`` file, or the folder of shards that a run under FSDP2 wrote.
        output: folder to create.
        config: the run's configuration; by default what the checkpoint says, and the ``config.yaml`` of its run.
        model: folder, file or hub id of the model that training started from; what the run says by default.
        tokenizer: folder or hub id; what the run says by default.
        dtype: of the written weights; that of the checkpoint by default.
        max_shard_size: of a file of weights, such as ``5GB``; that of transformers by default.
        merge: write a whole model where the run trained an adapter.
        trust_remote_code: run the code that the model brings. What the checkpoint says of this is not heeded.

    Returns:
        Figures of ``verify_export`` or, with ``merge``, of ``merge_adapter``; and ``is_adapter``, ``step``.

    Raises:
        UserError: the checkpoint is none, damaged, or not of the model; its model is not known; the output folder is
            in the way or cannot be written; or the export is not what the checkpoint holds.
    """
    if max_shard_size is not None and not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", max_shard_size):
        raise UserError(f"max_shard_size={max_shard_size} is no size such as 500MB or 5GB.")
    output = Path(output).expanduser()
    check_free(output, overwrite=False)
    trained = TrainedCheckpoint.find(checkpoint, config=config, model=model, tokenizer=tokenizer)
    facts = trained.facts
    try:
        with scratch_folder(output) as scratch:
            rebuilt, trained_with = trained.build(scratch / "weights", trust_remote_code=trust_remote_code)
            is_adapter = is_adapted(rebuilt)
            if merge and not is_adapter:
                raise UserError(f"{checkpoint} holds a whole model: there is nothing to merge. Leave --merge out.")
            folder = export_model(
                rebuilt,
                scratch / "adapter" if merge else output,
                tokenizer=trained_with,
                tokenizer_source=trained.tokenizer_source.files,
                metadata=run_metadata(
                    module_class=facts.module_class,
                    base_model=trained.base,
                    source=trained.source,
                    config=facts.config,
                    metrics=facts.metrics(),
                    reports=facts.header.get("data_reports") or {},
                    tokenizer=trained_with,
                ),
                dtype=None if merge else dtype,
                max_shard_size=max_shard_size,
            )
            figures = verify_export(rebuilt, folder, trained_with, tokenizer_source=trained.tokenizer_source.files)
            if merge:
                del rebuilt
                figures = merge_adapter(folder, output, dtype=dtype)
    except OSError as error:
        raise UserError(
            f"{output}: the export cannot be written: {error}. Nothing was left behind. Free space or name another "
            "folder."
        ) from error
    return {**figures, "is_adapter": is_adapter and not merge, "step": int(facts.header["global_step"])}
