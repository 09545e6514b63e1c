"""One LightningModule per objective, or per family of objectives that differ in a loss function alone."""

from lit_ift.modules.base import CausalLMModule
from lit_ift.modules.feedback_module import FeedbackModule
from lit_ift.modules.ift import IFTModule
from lit_ift.modules.kto import KTOModule
from lit_ift.modules.mixed import MixedModule, ObjectivePart
from lit_ift.modules.part_schedule import PartSchedule
from lit_ift.modules.preference import PreferenceModule
from lit_ift.modules.reference import ReferencePolicy
from lit_ift.modules.sft import SFTModule
from lit_ift.modules.sftmix import SFTMixModule
from lit_ift.modules.stepping import Batch, ExampleLosses, ExampleMeanModule
from lit_ift.modules.token_weights import ContrastiveWeights
from lit_ift.modules.uft import UFTModule

__all__ = [
    "Batch",
    "CausalLMModule",
    "ContrastiveWeights",
    "ExampleLosses",
    "ExampleMeanModule",
    "FeedbackModule",
    "IFTModule",
    "KTOModule",
    "MixedModule",
    "ObjectivePart",
    "PartSchedule",
    "PreferenceModule",
    "ReferencePolicy",
    "SFTMixModule",
    "SFTModule",
    "UFTModule",
]
