from .dropout import set_dropout_off
from .head import (
    LogitTransform,
    base_model,
    check_hidden_state_path,
    decoder,
    is_tied,
    logit_postprocess,
)
from .load import load_model, load_tokenizer
from .obtain import obtain_model
from .packing_check import check_packing
from .source import ModelSource

__all__ = [
    "LogitTransform",
    "ModelSource",
    "base_model",
    "check_hidden_state_path",
    "check_packing",
    "decoder",
    "is_tied",
    "load_model",
    "load_tokenizer",
    "logit_postprocess",
    "obtain_model",
    "set_dropout_off",
]
