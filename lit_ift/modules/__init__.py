"""One LightningModule per objective."""

from lit_ift.modules.base import Batch, CausalLMModule, ExampleLosses
from lit_ift.modules.ift import IFTModule
from lit_ift.modules.sft import SFTModule

__all__ = ["Batch", "CausalLMModule", "ExampleLosses", "IFTModule", "SFTModule"]
