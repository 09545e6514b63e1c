"""Where a model is to be loaded from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelSource:
    """A place from which transformers can load a model and its tokenizer.

    Args:
        path: local folder or hub id, as ``from_pretrained`` takes it.
        gguf_file: name of the GGUF file inside ``path``; None for safetensors.
        origin: the same in words, for logs and the model card.
        revision: branch, tag or commit of a hub id that is not resolved to a folder; None for its default branch.
        config: of the model, where it is to be built from that alone, with whatever weights; None to load it.
    """

    path: str
    gguf_file: str | None
    origin: str
    revision: str | None = None
    config: Any = field(default=None, compare=False)

    @property
    def is_local(self) -> bool:
        """Whether ``path`` is a folder on this machine rather than a hub id."""
        return Path(self.path).is_dir()

    @property
    def files(self) -> str | None:
        """Folder or hub id of the files that lie there; None for a GGUF file, which holds them inside."""
        return self.path if self.gguf_file is None else None
