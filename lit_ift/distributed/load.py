"""Load a model from safetensors straight into shards: each rank reads its rows of each tensor, and no more.

The model is built without values (``load_skeleton``), sharded, and then filled (``WeightFiles.read_into``).
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata

from lit_ift.checkpoints.shards import read_tensor, read_tensors, tensors_in
from lit_ift.errors import told_as
from lit_ift.models.load import check_causal_lm, check_folder, make_ready, where
from lit_ift.models.load_errors import explain_load_error
from lit_ift.models.obtain import obtain_model
from lit_ift.models.source import ModelSource
from lit_ift.models.tying import holds_apart, say_untied
from lit_ift.models.weight_names import in_words, weight_faults

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIMPLE_LORA: Final = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "use_rslora", "bias"),
    *("rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern"),
}
"""Options of an adapter that starts without a look at the weights that it adapts."""

_INDEX: Final = "model.safetensors.index.json"
_SINGLE: Final = "model.safetensors"


class WeightFiles:
    """The safetensors that transformers would load from a model's folder; each rank reads its own part of them.

    Attributes:
        shapes: of the tensors, by name.
    """

    def __init__(self, folder: Path) -> None:
        self._reader = _SafetensorsReader(folder)
        self.shapes = {name: entry.size for name, entry in tensors_in(self._reader.index).items()}

    @classmethod
    def of(cls, folder: Path) -> "WeightFiles | None":
        """Those of a folder that ``save_pretrained`` wrote; None where it has no safetensors."""
        return cls(folder) if any((folder / name).is_file() for name in (_SINGLE, _INDEX)) else None

    def read(self, name: str) -> torch.Tensor:
        """A tensor as it is stored."""
        return read_tensor(name, self._reader)

    def read_into(self, model: nn.Module) -> None:
        """Fill a sharded model, whose adapters, if any, have their values.

        Raises:
            UserError: a file cannot be read; raised on all ranks.
        """
        entries = {_base_name(name): value for name, value in model.state_dict(keep_vars=True).items()}
        read_tensors({name: entries[name] for name in self.shapes}, self._reader)


class _SafetensorsReader(HuggingFaceStorageReader):
    """Reads what the files hold once, not for each tensor."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.fs = _ModelFiles()
        self.index = super().read_metadata()

    def read_metadata(self) -> Metadata:
        return self.index


class _ModelFiles(FileSystem):
    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        """The files that transformers would load: others may hold the same weights in another form."""
        folder, files = Path(path), {_SINGLE}
        if not (folder / _SINGLE).is_file():
            files = set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        return [str(folder / file) for file in sorted(files)]


def _base_name(name: str) -> str:
    """A parameter's name in the model that an adapter was put on."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def load_skeleton(
    model: "str | ModelSource | PreTrainedModel",
    *,
    revision: str | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = None,
    gradient_checkpointing: bool | int = False,
    disable_dropout: bool = True,
    trust_remote_code: bool = False,
    lora: Mapping[str, Any] | None = None,
) -> "tuple[PreTrainedModel, WeightFiles] | None":
    """Build a model whose parameters have no values yet, and find the files to fill it from.

    Args:
        model: see ``load_model``, as for the other arguments.
        revision: see there.
        dtype: see there.
        attn_implementation: see there.
        gradient_checkpointing: see there.
        disable_dropout: see there.
        trust_remote_code: see there.
        lora: options of an adapter that will be put on it.

    Returns:
        The model in training mode with its files; None where it has to be loaded whole, which is said.

    Raises:
        UserError: the model cannot be obtained, or is not a causal language model.
    """
    if not isinstance(model, str | ModelSource):
        return None
    source = obtain_model(model, revision=revision) if isinstance(model, str) else model
    if source.gguf_file is not None:
        return _whole(source, "it is a GGUF file")
    if strange := sorted(set(lora or {}) - SIMPLE_LORA):
        return _whole(source, f"lora.{strange[0]} may need its weights")
    config = read_config(source, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None) is not None:
        return _whole(source, "its weights are quantized")
    chosen = config.dtype if dtype == "auto" else getattr(torch, dtype or "float32")
    if chosen is None:
        return _whole(source, "its config.json names no dtype")
    folder = _folder(source)
    with told_as(Exception, lambda error: explain_load_error(source, error, what="model")):
        files = WeightFiles.of(folder)
    if files is None:
        return _whole(source, "it has no safetensors")
    options: dict[str, Any] = {
        "dtype": chosen,
        "attn_implementation": attn_implementation,
        "trust_remote_code": trust_remote_code,
    }
    built = build_skeleton(source, config, **options)
    with told_as(Exception, lambda error: explain_load_error(source, error, what="model")):
        if holds_apart(built.state_dict(keep_vars=True), files.shapes, files.read):
            say_untied(config)
            built = build_skeleton(source, config, **options)
    if faults := weight_faults(built.state_dict(keep_vars=True), files.shapes):
        return _whole(source, f"its files do not hold its weights as they are ({in_words(faults)})")
    make_ready(built, gradient_checkpointing=gradient_checkpointing, disable_dropout=disable_dropout)
    return built, files


def read_config(source: ModelSource, *, trust_remote_code: bool) -> Any:
    """The configuration of a model that is no GGUF file.

    Raises:
        UserError: it cannot be obtained, or is not that of a causal language model.
    """
    from transformers import AutoConfig

    check_folder(source)
    with told_as(Exception, lambda error: explain_load_error(source, error, what="config.json")):
        config = AutoConfig.from_pretrained(source.path, trust_remote_code=trust_remote_code, **where(source))
    check_causal_lm(source, config)
    return config


def build_skeleton(
    source: ModelSource,
    config: Any,
    *,
    dtype: torch.dtype,
    attn_implementation: str | None,
    trust_remote_code: bool,
) -> "PreTrainedModel":
    """Build a model whose parameters have no values, with its generation config.

    Args:
        source: where the model is from.
        config: its configuration.
        dtype: of the parameters.
        attn_implementation: see ``load_model``.
        trust_remote_code: see there.

    Raises:
        UserError: the model cannot be built.
    """
    from transformers import AutoModelForCausalLM

    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with told_as(Exception, lambda error: explain_load_error(source, error, what="model")):
        with parameters_on_meta():
            built: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=trust_remote_code, **options
            )
        built.generation_config = _generation_config(source, where(source), built.generation_config)
    return built


def _whole(source: ModelSource, reason: str) -> "tuple[PreTrainedModel, WeightFiles] | None":
    rank_zero_info(f"{source.origin} is loaded whole on every rank before it is sharded: {reason}.")
    return None


def _folder(source: ModelSource) -> Path:
    """The files of a model on this machine, downloaded if need be."""
    if source.is_local:
        return Path(source.path)
    from huggingface_hub import snapshot_download

    with told_as(Exception, lambda error: explain_load_error(source, error, what="model")):
        options = where(source)
        return Path(snapshot_download(source.path, allow_patterns=["*.json", "model*.safetensors"], **options))


def _generation_config(source: ModelSource, options: dict[str, Any], default: Any) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(source.path, **options)
    except OSError:  # There is none: that of the configuration serves, as in from_pretrained.
        return default


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Within, new modules hold parameters without values; buffers, which are computed, hold theirs."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if param is not None and not param.is_meta:
            module._parameters[name] = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


@contextlib.contextmanager
def stand_ins(model: nn.Module) -> Iterator[None]:
    """Within, parameters without values pose as tensors on the host, all elements of which are one number.

    An adapter that is put on the model meanwhile is a real one; it would be without values otherwise.
    """
    posing: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                if id(parameter) not in posing:
                    number = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                    posing[id(parameter)] = nn.Parameter(number, requires_grad=parameter.requires_grad)
                module._parameters[name] = posing[id(parameter)]
    try:
        yield
    finally:
        back: dict[int, nn.Parameter] = {}
        for pose in posing.values():
            back[id(pose)] = nn.Parameter(pose.detach().to("meta").contiguous(), requires_grad=pose.requires_grad)
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if id(parameter) in back:
                    module._parameters[name] = back[id(parameter)]


def materialise(model: nn.Module, place: torch.device) -> None:
    """Give shards on the meta device memory, without values yet."""
    model._apply(lambda t: torch.empty_like(t, device=place) if t.is_meta else t)  # type: ignore[no-untyped-call]
