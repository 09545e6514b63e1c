"""The model of a training checkpoint, its weights on the disk, and what is known of the run that wrote it."""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_ift.checkpoints.weights import CheckpointWeights
from lit_ift.distributed.load import build_skeleton, read_config, stand_ins
from lit_ift.errors import UserError
from lit_ift.export.card import ExportMetadata
from lit_ift.export.file_tensors import mapped
from lit_ift.models.added_tokens import add_tokens
from lit_ift.models.head import base_model
from lit_ift.models.load import load_model, load_tokenizer
from lit_ift.models.lora import add_lora, is_adapter_weight
from lit_ift.models.obtain import obtain_model
from lit_ift.models.source import ModelSource
from lit_ift.models.tying import holds_apart, say_untied
from lit_ift.models.weight_names import in_words, weight_faults


@dataclass(frozen=True)
class RunFacts:
    """What a checkpoint, and the configuration of its run, say of model and data.

    Attributes:
        module: options of the module.
        data: options of the data module.
        objective: name of the module's class; None if nobody knows.
        config: the whole configuration.
        folder: of the run's logs.
        header: of the checkpoint.
    """

    module: Mapping[str, Any]
    data: Mapping[str, Any]
    objective: str | None
    config: Mapping[str, Any] = field(repr=False)
    folder: Path | None
    header: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, checkpoint: CheckpointWeights, config: Path | None = None) -> "RunFacts":
        """Those of a checkpoint.

        Args:
            checkpoint: it names the options of module and data, if they are plain values.
            config: of the run; what it says wins. By default the ``config.yaml`` beside the checkpoint's folder, or
                else in the folder of its logs, which only says what the checkpoint does not.

        Raises:
            UserError: ``config`` cannot be read.
        """
        header = checkpoint.header
        logged = (header.get("logged") or {}).get("folder")
        folders = [checkpoint.path.resolve().parent.parent, *([Path(logged)] if logged else [])]
        found = next((file for folder in folders if (file := _config_in(folder)) is not None), None)
        file = config or found
        values = {} if file is None else _read_yaml(file)
        of_module, of_data = (_options(values.get(name)) for name in ("model", "data"))
        saved = dict(header.get("hyper_parameters") or {}), dict(header.get("datamodule_hyper_parameters") or {})
        class_path = (values.get("model") or {}).get("class_path") or saved[0].get("_class_path")
        named = None if class_path is None else str(class_path).rpartition(".")[2].removesuffix("Module").lower()
        return cls(
            module={**saved[0], **of_module} if config else {**of_module, **saved[0]},
            data={**saved[1], **of_data} if config else {**of_data, **saved[1]},
            objective=named,
            config=values or {"model": _named(saved[0]), "data": _named(saved[1])},
            folder=next((folder for folder in folders if (folder / "metrics.csv").is_file()), None),
            header=header,
        )

    def metadata(self, spec: str, revision: str | None, tokenizer: Any) -> ExportMetadata:
        """What an export's card says, and the tokens that end a turn."""
        reports = self.header.get("data_reports") or {}
        metadata: ExportMetadata = {
            "config": without_none(self.config),
            "metrics": self._metrics(),
            "data_report": reports,
            "stop_token_ids": _turn_ends(reports.get("train") or {}, tokenizer),
            "base_model": spec,
            "base_model_origin": obtain_model(spec, revision=revision).origin,
            "name": "-".join([Path(spec).name, *([self.objective] if self.objective else [])]),
        }
        if self.objective:
            metadata["objective"] = self.objective
        return metadata

    def _metrics(self) -> dict[str, float]:
        """The last value of each metric that had been logged when the checkpoint was written."""
        logged = self.header.get("logged") or {}
        found: dict[str, str | float] = {}
        rows = sum(logged.get("rows", {}).values())
        if self.folder is not None and rows:
            with (self.folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
                for _, row in zip(range(rows), csv.DictReader(file), strict=False):
                    found |= {name: value for name, value in row.items() if value}
        found |= logged.get("pending", {})
        return {name: float(found[name]) for name in sorted(found) if name not in ("epoch", "step")}


def rebuild(
    checkpoint: CheckpointWeights,
    facts: RunFacts,
    scratch: Path,
    *,
    spec: str,
    revision: str | None,
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
        spec: folder, file or hub id of the model that training started from, for its configuration.
        revision: of a hub id.
        trust_remote_code: run the code that the model brings.
        num_tokens: rows that its embedding must have at least, for tokens that the run added.

    Returns:
        A Hugging Face model, or a ``PeftModel``.

    Raises:
        UserError: the weights are not those of such a model, or the model cannot be had.
        OSError: ``scratch`` cannot be written.
    """
    source = obtain_model(spec, revision=revision)
    lora = facts.module.get("lora")
    if facts.module.get("quantization") is not None:
        return _on_stored_base(
            checkpoint, facts, source, lora or {}, revision=revision, trust_remote_code=trust_remote_code
        )
    of_base = [kind for name, (kind, _) in checkpoint.kinds.items() if not is_adapter_weight(name)]
    dtype = next((kind for kind in of_base if kind.is_floating_point), torch.float32)
    attn = facts.module.get("attn_implementation")
    model: Any

    def build(config: Any) -> Any:
        built: Any = build_skeleton(
            source,
            config,
            dtype=dtype,
            revision=revision,
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
        config = read_config(source, revision=revision, trust_remote_code=trust_remote_code)
        text_config = config.get_text_config()
        text_config.vocab_size = max(text_config.vocab_size, num_tokens)
        model = build(config)
        if holds_apart(model.state_dict(keep_vars=True), checkpoint.kinds, checkpoint.read):
            say_untied(config)
            model = build(config)
    entries = model.state_dict(keep_vars=True)
    _check_fit(checkpoint, entries, spec)
    found = {name: name for name in entries if name in checkpoint.kinds}
    if checkpoint.is_mapped:
        weights = {name: checkpoint.read(name) for name in found}
    else:
        first: dict[int, str] = {}  # Of tied weights, one is enough.
        found = {name: first.setdefault(id(entries[name]), name) for name in found}
        written = mapped(((name, checkpoint.read(name)) for name in dict.fromkeys(found.values())), scratch)
        weights = {name: written[other] for name, other in found.items()}
    model.load_state_dict(weights, strict=False, assign=True)
    base_model(model).tie_weights()
    return model.eval()


def _with_lora(model: Any, lora: Mapping[str, Any] | None) -> Any:
    """The model with a fresh adapter, if the run trained one."""
    if lora is None:
        return model
    with stand_ins(model):
        return add_lora(model, lora)


def _on_stored_base(
    checkpoint: CheckpointWeights,
    facts: RunFacts,
    source: ModelSource,
    lora: Mapping[str, Any],
    *,
    revision: str | None,
    trust_remote_code: bool,
) -> Any:
    """The adapter of a checkpoint on its base model in full precision."""
    base = load_model(
        source,
        revision=revision,
        dtype=facts.module.get("dtype"),
        attn_implementation=facts.module.get("attn_implementation"),
        disable_dropout=False,
        trust_remote_code=trust_remote_code,
    )
    model = add_lora(base, lora)
    entries = model.state_dict(keep_vars=True).items()
    _check_fit(checkpoint, {name: value for name, value in entries if is_adapter_weight(name)}, source.origin)
    model.load_state_dict({name: checkpoint.read(name) for name in checkpoint.kinds}, strict=False)
    return model.eval()


def tokenizer_of(facts: RunFacts, spec: str, source: str, revision: str | None, trust_remote_code: bool) -> Any:
    """The tokenizer as it was trained with, its chat template included; see ``BaseDataModule`` for the latter."""
    from lit_ift.chat.templates import is_built_in_template, resolve_chat_template, with_bos

    of_model = revision if source == spec else None
    tokenizer: Any = load_tokenizer(source, revision=of_model, trust_remote_code=trust_remote_code)
    add_tokens(tokenizer, facts.module.get("added_tokens") or ())
    name = facts.data.get("chat_template")
    if name is not None:
        template = resolve_chat_template(name)
        tokenizer.chat_template = with_bos(template, tokenizer) if is_built_in_template(name) else template
    return tokenizer


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the entries that say nothing."""
    kept = {k: without_none(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    return {k: v for k, v in kept.items() if v is not None and v != {}}


def _check_fit(checkpoint: CheckpointWeights, entries: Mapping[str, Any], spec: str) -> None:
    faults = weight_faults(entries, {name: shape for name, (_, shape) in checkpoint.kinds.items()})
    if not faults:
        return
    remedy = "Name the model that the run started from with --model, or the run's configuration with --config."
    if any(name.startswith("base_model.") for name in faults.get("not part of the model", ())):
        remedy = "They are those of an adapter, whose options (model.lora) are not known. Give the run's --config."
    raise UserError(f"{checkpoint.path}: the weights are not those of {spec} ({in_words(faults)}). {remedy}")


def _config_in(folder: Path) -> Path | None:
    """The configuration that was saved last in a run's folder."""

    def number(file: Path) -> int:
        found = re.fullmatch(r"config(?:\.(\d+))?\.yaml", file.name)
        return -1 if found is None else int(found[1] or 0)

    newest = max(folder.glob("config*.yaml"), key=number, default=None)
    return newest if newest is not None and number(newest) >= 0 else None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: the configuration cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: it is no configuration of a run, which has model and data. Name its config.yaml.")
    return values


def _options(part: Any) -> dict[str, Any]:
    options = part.get("init_args", {}) if isinstance(part, Mapping) else {}
    return dict(options) if isinstance(options, Mapping) else {}


def _named(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without what Lightning adds."""
    return {name: value for name, value in options.items() if not name.startswith("_")}


def _turn_ends(report: Mapping[str, Any], tokenizer: Any) -> list[int]:
    """Control tokens that trained turns end in, which a checkpoint knows by their text."""
    from lit_ift.data.report.builder import control_ids

    ends = report.get("turn_ends") or {}
    return sorted(i for i in control_ids(tokenizer) if tokenizer.decode([i], skip_special_tokens=False) in ends)
