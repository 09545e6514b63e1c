from .data import ConversationDataModule, FeedbackDataModule, InstructionDataModule, TasksDataModule
from .modules import (
    CausalLMModule,
    IFTModule,
    KTOModule,
    MixedModule,
    PreferenceModule,
    SFTMixModule,
    SFTModule,
    UFTModule,
)

__all__ = [
    "CausalLMModule",
    "ConversationDataModule",
    "FeedbackDataModule",
    "IFTModule",
    "InstructionDataModule",
    "KTOModule",
    "MixedModule",
    "PreferenceModule",
    "SFTMixModule",
    "SFTModule",
    "TasksDataModule",
    "UFTModule",
]
