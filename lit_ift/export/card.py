"""The model card of an export."""

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any, Final, TypedDict

import yaml

from lit_ift.data.report.builder import control_ids
from lit_ift.models.source import ModelSource

PACKAGES: Final = ("lit-ift", "torch", "lightning", "transformers", "tokenizers", "datasets", "peft")


class ExportMetadata(TypedDict, total=False):
    """What a model card tells about a training run; leave out what is not known."""

    name: str
    """Title of the card; the name of the folder otherwise."""
    base_model: str
    """Hub id or folder of the model that training started from."""
    base_model_origin: str
    """The same in words, as ``ModelSource.origin``."""
    objective: str
    """ift, sft, dpo and so on; becomes a tag."""
    license: str
    """SPDX identifier in lower case, such as apache-2.0."""
    datasets: list[str]
    """Hub ids of data sets."""
    config: Mapping[str, Any]
    """The whole configuration."""
    metrics: Mapping[str, Any]
    """Figure by metric name."""
    data_report: Mapping[str, Any]
    """What the data module counted."""
    stop_token_ids: list[int]
    """Ids of the tokens that end a trained turn."""


def run_metadata(
    *,
    module_class: str | None,
    base_model: object,
    source: ModelSource | None,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    reports: Mapping[str, Mapping[str, Any]],
    tokenizer: Any,
) -> ExportMetadata:
    """What is told of a training run, when it ends and from one of its checkpoints alike.

    Args:
        module_class: name of the module's class.
        base_model: what the user calls the model that training started from, if that is a text.
        source: where it is.
        config: of the run; entries that say nothing are left out.
        metrics: figure by metric name.
        reports: summary of the data report of each split.
        tokenizer: as it was trained with.
    """
    metadata: ExportMetadata = {
        "config": _without_none(config),
        "metrics": metrics,
        "data_report": reports,
        "stop_token_ids": turn_ends(reports.get("train") or {}, tokenizer),
    }
    objective = None if module_class is None else module_class.removesuffix("Module").lower()
    if objective:
        metadata["objective"] = objective
    if isinstance(base_model, str) and source is not None:
        metadata["base_model"] = base_model
        metadata["base_model_origin"] = source.origin
        metadata["name"] = "-".join([Path(base_model).name, *([objective] if objective else [])])
    return metadata


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: _without_none(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    return {k: v for k, v in kept.items() if v is not None and v != {}}


def turn_ends(report: Mapping[str, Any], tokenizer: Any) -> list[int]:
    """Control tokens that trained turns end in, which a report's summary has by their text."""
    ends = report.get("turn_ends") or {}
    return sorted(i for i in control_ids(tokenizer) if tokenizer.decode([i], skip_special_tokens=False) in ends)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter for a run."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Check that every entry is one that the card shows.

    Raises:
        ValueError: an entry is unknown.
    """
    unknown = sorted(set(metadata) - set(ExportMetadata.__annotations__))
    if unknown:
        raise ValueError(f"unknown metadata {unknown}; allowed: {sorted(ExportMetadata.__annotations__)}")


def model_card(metadata: ExportMetadata, *, folder_name: str, chat_example: bool, is_adapter: bool = False) -> str:
    """Write the README of an export.

    Args:
        metadata: of the run.
        folder_name: of the export.
        chat_example: whether the tokenizer has a chat template to show.
        is_adapter: whether the folder holds an adapter, not a whole model.

    Returns:
        Markdown with YAML front matter.
    """
    objective = metadata.get("objective", "")
    parts = [
        f"---\n{_yaml(_front_matter(metadata, is_adapter))}---",
        f"# {metadata.get('name', folder_name)}",
        _what_it_is(metadata, objective, is_adapter),
        f"## How to load\n\n```python\n{_example(folder_name, chat_example, is_adapter)}```",
        f"## How to serve\n\n```bash\n{_serving(metadata, folder_name, is_adapter)}```",
        _section("Configuration", _yaml_block(metadata.get("config"))),
        _section("Metrics", _table(metadata.get("metrics"))),
        _section("Data", _yaml_block(metadata.get("data_report"))),
        _section("Versions", _table(versions())),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(metadata: ExportMetadata, is_adapter: bool) -> dict[str, Any]:
    objective = metadata.get("objective")
    tags = ["lit-ift", *([objective] if objective else [])]
    library = "peft" if is_adapter else "transformers"
    front: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation", "tags": tags}
    if base := metadata.get("base_model"):
        front["base_model"] = base
    if licence := metadata.get("license"):
        front["license"] = licence
    if datasets := metadata.get("datasets"):
        front["datasets"] = list(datasets)
    return front


def _what_it_is(metadata: ExportMetadata, objective: str, is_adapter: bool) -> str:
    base = metadata.get("base_model_origin") or metadata.get("base_model") or "a causal language model"
    with_what = f" with the objective `{objective}`" if objective else ""
    if is_adapter:
        return f"A LoRA adapter for {base}, trained{with_what} by lit-ift."
    return f"A causal language model, trained from {base}{with_what} by lit-ift."


def _example(folder_name: str, chat: bool, is_adapter: bool) -> str:
    kind = "AutoPeftModelForCausalLM" if is_adapter else "AutoModelForCausalLM"
    imports = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    if is_adapter:
        imports = ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer"]
    lines = [
        *imports,
        "",
        f'folder = "{folder_name}"  # path of this folder',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {kind}.from_pretrained(folder)",
    ]
    if chat:
        lines += [
            'messages = [{"role": "user", "content": "What is the capital of France?"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    else:
        lines += ['inputs = tokenizer("The capital of France is", return_tensors="pt")']
    lines += [
        "output = model.generate(**inputs, max_new_tokens=64, do_sample=False)",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    return "\n".join(lines) + "\n"


def _serving(metadata: ExportMetadata, folder_name: str, is_adapter: bool) -> str:
    """Commands of other programs, which read the folder as it is, or after their own conversion."""
    folder, name = quote(folder_name), quote(folder_name.lower())
    base = quote(str(metadata.get("base_model") or "BASE_MODEL"))
    if is_adapter:
        lines = [
            f"vllm serve {base} --enable-lora --lora-modules {name}={folder}",
            f"lit-ift merge {folder} merged   # a whole model, for what takes no adapters",
            f"python llama.cpp/convert_lora_to_gguf.py {folder} --outfile adapter.gguf   # for llama-server --lora",
        ]
    else:
        lines = [
            f"vllm serve {folder}",
            f"python llama.cpp/convert_hf_to_gguf.py {folder} --outfile model.gguf --outtype q8_0",
            "llama-server -m model.gguf",
            f"echo 'FROM ./model.gguf' > Modelfile && ollama create {name} -f Modelfile && ollama run {name}",
        ]
    return "\n".join(lines) + "\n"


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _yaml(values: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True)
    return text


def _yaml_block(values: Mapping[str, Any] | None) -> str:
    return f"```yaml\n{_yaml(values)}```" if values else ""


def _table(values: Mapping[str, Any] | None) -> str:
    if not values:
        return ""
    rows = [f"| {name} | {_figure(value)} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _figure(value: Any) -> str:
    plain = _plain(value)
    return f"{plain:.6g}" if isinstance(plain, float) else str(plain)


def _plain(value: Any) -> Any:
    """Only what YAML knows: paths, tensors and other objects become numbers or text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return str(value)
