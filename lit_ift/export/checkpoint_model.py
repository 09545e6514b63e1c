"""The model of a training checkpoint, its weights on the disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lit_ift.checkpoints.weights import CheckpointWeights, open_checkpoint
from lit_ift.distributed.load import build_skeleton, read_config, stand_ins
from lit_ift.errors import UserError
from lit_ift.export.memory_mapped import memory_mapped
from lit_ift.export.run_facts import RunFacts, tokenizer_of
from lit_ift.models.head import base_model
from lit_ift.models.load import load_model
from lit_ift.models.lora import add_lora, is_adapter_weight
from lit_ift.models.obtain import obtain_model
from lit_ift.models.source import ModelSource
from lit_ift.models.tying import holds_apart, say_untied
from lit_ift.models.weight_names import in_words, weight_faults


@dataclass(frozen=True)
class TrainedCheckpoint:
    """A checkpoint, and where the model and the tokenizer of its run are.

    Attributes:
        weights: on the disk.
        facts: of the run.
        base: what the user calls the model that training started from.
        source: of that model.
        tokenizer_source: of its tokenizer.
    """

    weights: CheckpointWeights
    facts: RunFacts
    base: str
    source: ModelSource
    tokenizer_source: ModelSource

    @classmethod
    def find(
        cls, checkpoint: Path, *, config: Path | None = None, model: str | None = None, tokenizer: str | None = None
    ) -> "TrainedCheckpoint":
        """Look at a checkpoint; the arguments are those of ``export_checkpoint``.

        Raises:
            UserError: the checkpoint is none or damaged, or its model is not known or not there.
        """
        found = open_checkpoint(checkpoint)
        facts = RunFacts.of(found, config)
        base = model or facts.module.get("model")
        if not isinstance(base, str):
            raise UserError(
                f"{checkpoint} does not say which model the run started from, which may have been given ready-made. "
                "Name a folder or hub id with the same configuration: --model"
            )
        source = obtain_model(
            base, revision=facts.module.get("revision") if base == facts.module.get("model") else None
        )
        tokenizer_spec = tokenizer or facts.module.get("tokenizer") or base
        tokenizer_source = source if tokenizer_spec == base else obtain_model(tokenizer_spec)
        return cls(found, facts, base, source, tokenizer_source)

    def build(self, scratch: Path, *, trust_remote_code: bool) -> tuple[Any, Any]:
        """The trained model and its tokenizer; see ``checkpoint_model`` for ``scratch`` and errors."""
        tokenizer = tokenizer_of(self.facts, self.tokenizer_source, trust_remote_code=trust_remote_code)
        added = bool(self.facts.module.get("added_tokens"))
        model = checkpoint_model(
            self.weights,
            self.facts,
            scratch,
            source=self.source,
            trust_remote_code=trust_remote_code,
            num_tokens=max(tokenizer.get_vocab().values()) + 1 if added else 0,
        )
        return model, tokenizer


def checkpoint_model(
    checkpoint: CheckpointWeights,
    facts: RunFacts,
    scratch: Path,
    *,
    source: ModelSource,
    trust_remote_code: bool,
    num_tokens: int = 0,
) -> Any:
    """Build the model that a checkpoint has the weights of; memory holds one of them at a time.

    Weights of a folder of shards are put together in ``scratch``; those of a file stay where they are. Where the run
    held its base model quantized, the checkpoint has the adapter alone, which is put on the base model as it is stored.

    Args:
        checkpoint: it is read.
        facts: of its run: attention and adapter.
        scratch: file to create, which is not needed any more once the model is gone.
        source: of the model that training started from, for its configuration.
        trust_remote_code: run the code that the model brings.
        num_tokens: rows that its embedding must have at least, for tokens that the run added.

    Returns:
        A Hugging Face model, or a ``PeftModel``.

    Raises:
        UserError: the weights are not those of such a model, or the model cannot be obtained.
        OSError: ``scratch`` cannot be written.
    """
    lora = facts.module.get("lora")
    if facts.module.get("quantization") is not None:
        return _on_stored_base(checkpoint, facts, source, lora or {}, trust_remote_code=trust_remote_code)
    of_base = [kind for name, (kind, _) in checkpoint.kinds.items() if not is_adapter_weight(name)]
    dtype = next((kind for kind in of_base if kind.is_floating_point), torch.float32)
    attn = facts.module.get("attn_implementation")
    model: Any

    def build(config: Any) -> Any:
        built: Any = build_skeleton(
            source,
            config,
            dtype=dtype,
            attn_implementation=attn,
            trust_remote_code=trust_remote_code,
        )
        return _with_lora(built, lora)

    if source.gguf_file is not None:  # It has no configuration but in the form of a model.
        model = load_model(source, dtype=str(dtype).removeprefix("torch."), attn_implementation=attn)
        if num_tokens > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(num_tokens, mean_resizing=False)
        model = _with_lora(model, lora)
    else:
        config = read_config(source, trust_remote_code=trust_remote_code)
        text_config = config.get_text_config()
        text_config.vocab_size = max(text_config.vocab_size, num_tokens)
        model = build(config)
        if holds_apart(model.state_dict(keep_vars=True), checkpoint.kinds, checkpoint.read):
            say_untied(config)
            model = build(config)
    entries = model.state_dict(keep_vars=True)
    _check_fit(checkpoint, entries, source)
    found = {name: name for name in entries if name in checkpoint.kinds}
    if checkpoint.is_mapped:
        weights = {name: checkpoint.read(name) for name in found}
    else:
        first: dict[int, str] = {}  # Of tied weights, one is enough.
        found = {name: first.setdefault(id(entries[name]), name) for name in found}
        written = memory_mapped(((name, checkpoint.read(name)) for name in dict.fromkeys(found.values())), scratch)
        weights = {name: written[other] for name, other in found.items()}
    model.load_state_dict(weights, strict=False, assign=True)
    base_model(model).tie_weights()
    return model.eval()


def _with_lora(model: Any, lora: Mapping[str, Any] | None) -> Any:
    """The model with a fresh adapter, if the run trained one."""
    if lora is None:
        return model
    with stand_ins(model):
        return add_lora(model, lora, fresh=True)


def _on_stored_base(
    checkpoint: CheckpointWeights,
    facts: RunFacts,
    source: ModelSource,
    lora: Mapping[str, Any],
    *,
    trust_remote_code: bool,
) -> Any:
    """The adapter of a checkpoint on its base model in full precision."""
    base = load_model(
        source,
        dtype=facts.module.get("dtype"),
        attn_implementation=facts.module.get("attn_implementation"),
        disable_dropout=False,
        trust_remote_code=trust_remote_code,
    )
    model = add_lora(base, lora, fresh=True)
    entries = model.state_dict(keep_vars=True).items()
    _check_fit(checkpoint, {name: value for name, value in entries if is_adapter_weight(name)}, source)
    model.load_state_dict({name: checkpoint.read(name) for name in checkpoint.kinds}, strict=False)
    return model.eval()


def _check_fit(checkpoint: CheckpointWeights, entries: Mapping[str, Any], source: ModelSource) -> None:
    faults = weight_faults(entries, {name: shape for name, (_, shape) in checkpoint.kinds.items()})
    if not faults:
        return
    remedy = "Name the model that the run started from with --model, or the run's configuration with --config."
    if any(name.startswith("base_model.") for name in faults.get("not part of the model", ())):
        remedy = "They are those of an adapter, whose options (model.lora) are not known. Give the run's --config."
    raise UserError(f"{checkpoint.path}: the weights are not those of {source.origin} ({in_words(faults)}). {remedy}")
