"""Single-process alignment of language models in PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_ift.data import ConversationDataModule, InstructionDataModule, TasksDataModule
    from lit_ift.modules import CausalLMModule, IFTModule, SFTModule

_HOMES = {
    "CausalLMModule": "lit_ift.modules",
    "IFTModule": "lit_ift.modules",
    "SFTModule": "lit_ift.modules",
    "ConversationDataModule": "lit_ift.data",
    "InstructionDataModule": "lit_ift.data",
    "TasksDataModule": "lit_ift.data",
}

__all__ = [
    "CausalLMModule",
    "ConversationDataModule",
    "IFTModule",
    "InstructionDataModule",
    "SFTModule",
    "TasksDataModule",
]


def __getattr__(name: str) -> Any:
    """Import public names when first used: ``import lit_ift`` alone stays quick (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lit_ift' has no attribute {name!r}")
