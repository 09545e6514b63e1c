"""The configuration of a model that is not to be loaded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_ift.distributed.load import read_config
from lit_ift.errors import UserError
from lit_ift.models.load import load_tokenizer
from lit_ift.models.obtain import default_cache_dir, obtain_model
from lit_ift.models.source import ModelSource
from lit_ift.models.wheel import KNOWN_WHEELS, is_complete
from lit_ift.planning.known_models import KNOWN, known_config


class NoTokenizer:
    """Stands in for a tokenizer that cannot be obtained. Rows are made up then, and need an id for padding."""

    pad_token_id = eos_token_id = 0
    chat_template = None

    def get_vocab(self) -> dict[str, int]:
        """No tokens."""
        return {}


def source_with_config(model: str, *, revision: str | None, trust_remote_code: bool) -> ModelSource:
    """Where a model is, with its configuration; nothing but config.json is fetched.

    Raises:
        UserError: it is neither here, nor on the hub, nor of a known size.
    """
    is_here = Path(model).expanduser().exists() or (
        model in KNOWN_WHEELS and is_complete(default_cache_dir() / KNOWN_WHEELS[model].name)
    )
    if is_here:
        source = obtain_model(model, revision=revision)
        return replace(source, config=_config(source, trust_remote_code))
    source = (
        obtain_model(model, revision=revision)
        if model not in KNOWN_WHEELS
        else ModelSource(model, None, f"{model} on the Hugging Face hub", revision)
    )
    try:
        return replace(source, config=_config(source, trust_remote_code))
    except UserError as error:
        if (config := known_config(model)) is None:
            raise UserError(f"{error}\nSizes are known without it of {', '.join(KNOWN)}.") from error
        return replace(source, config=config)


def _config(source: ModelSource, trust_remote_code: bool) -> Any:
    if source.gguf_file is None:
        return read_config(source, trust_remote_code=trust_remote_code)
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source.path, gguf_file=source.gguf_file)


def tokenizer_or_stand_in(spec: str, source: ModelSource | None, *, trust_remote_code: bool) -> Any:
    """The tokenizer, or a stand-in where only the weights would bring it.

    Args:
        spec: of the tokenizer.
        source: of the model, if it is the model's own.
        trust_remote_code: run the code that the repository brings.
    """
    try:
        return load_tokenizer(source or spec, trust_remote_code=trust_remote_code)
    except UserError:
        return NoTokenizer()
