"""``lit-ift export`` and ``lit-ift merge``: models after training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

from lit_ift.cli.tree import function_parser, parse

Dtype = Literal["float32", "bfloat16", "float16", "float64"]


def merge(adapter: Path, output: Path, *, model: str | None = None, dtype: Dtype | None = None) -> None:
    """Merge a LoRA adapter into its base model and write a whole Hugging Face model.

    Args:
        adapter: folder of the adapter, as a run with model.lora exports it.
        output: folder to write; must not exist or be empty.
        model: base model, if it is not where the adapter says.
        dtype: of the written weights; that of the base model's checkpoint by default.
    """
    from lit_ift.export.merge import merge_adapter

    figures = merge_adapter(adapter, output, base=model, dtype=dtype)
    print(
        f"{output}: {figures['dtype']} weights; logits differ from those of the adapter on its base model "
        f"by {figures['max_abs_logit_diff']:.1e} before they are stored"
    )


def export(
    checkpoint: Path,
    output: Path,
    *,
    config: Path | None = None,
    model: str | None = None,
    tokenizer: str | None = None,
    dtype: Dtype | None = None,
    max_shard_size: str | None = None,
    merge: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Write the model of a training checkpoint as a Hugging Face folder, and compare the two.

    Of a run with model.lora it is an adapter's folder. It takes one process, no GPU, and memory for the largest weight.

    Args:
        checkpoint: .ckpt file, or folder of shards.
        output: folder to write; must not exist or be empty.
        config: configuration of the run; config.yaml in its folder by default.
        model: what the run started from, if it is not where the checkpoint says.
        tokenizer: if it is not where the checkpoint says.
        dtype: of the written weights; that of the checkpoint by default.
        max_shard_size: of a file of a model's weights, such as 5GB.
        merge: merge an adapter into its base model, which is held in memory as a whole.
        trust_remote_code: run the code that the model brings.
    """
    from lit_ift.export.from_checkpoint import export_checkpoint

    figures = export_checkpoint(
        checkpoint,
        output,
        config=config,
        model=model,
        tokenizer=tokenizer,
        dtype=dtype,
        max_shard_size=max_shard_size,
        merge=merge,
        trust_remote_code=trust_remote_code,
    )
    what = "LoRA adapter" if figures["is_adapter"] else "Hugging Face model"
    print(
        f"{output}: {what} of step {figures['step']}, {figures['dtype']} weights (loaded again: logits differ by at "
        f"most {figures['max_abs_logit_diff']:.1e}, template ids equal: {figures['template_ids_equal']})"
    )


FUNCTIONS: Final[dict[str, Callable[..., None]]] = {"merge": merge, "export": export}


def run(words: Sequence[str]) -> int:
    """Run ``merge`` or ``export``, given from there on, and return 0.

    Raises:
        argparse.ArgumentError: the call is wrong.
        UserError: the model cannot be written.
    """
    function = FUNCTIONS[words[0]]
    function(**vars(parse(words, words[0], function_parser(function))))
    return 0
