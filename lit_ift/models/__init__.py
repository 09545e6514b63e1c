"""Obtaining, loading and exporting Hugging Face models.

The names are imported on first use, so that ``import lit_ift.models`` costs neither torch nor transformers.
"""

from typing import TYPE_CHECKING

from lit_ift.lazy import lazy_names

if TYPE_CHECKING:
    from lit_ift.models.card import ExportMetadata
    from lit_ift.models.dropout import set_dropout_off
    from lit_ift.models.export import export_model
    from lit_ift.models.head import (
        LogitTransform,
        base_model,
        check_hidden_state_path,
        decoder,
        is_tied,
        logit_postprocess,
    )
    from lit_ift.models.load import load_model, load_tokenizer
    from lit_ift.models.obtain import obtain_model
    from lit_ift.models.packing import check_packing
    from lit_ift.models.source import ModelSource
    from lit_ift.models.verify import verify_export

_MODULE_OF = {
    "ExportMetadata": "card",
    "LogitTransform": "head",
    "ModelSource": "source",
    "base_model": "head",
    "check_hidden_state_path": "head",
    "check_packing": "packing",
    "decoder": "head",
    "export_model": "export",
    "is_tied": "head",
    "load_model": "load",
    "load_tokenizer": "load",
    "logit_postprocess": "head",
    "obtain_model": "obtain",
    "set_dropout_off": "dropout",
    "verify_export": "verify",
}

__all__ = [
    "ExportMetadata",
    "LogitTransform",
    "ModelSource",
    "base_model",
    "check_hidden_state_path",
    "check_packing",
    "decoder",
    "export_model",
    "is_tied",
    "load_model",
    "load_tokenizer",
    "logit_postprocess",
    "obtain_model",
    "set_dropout_off",
    "verify_export",
]


__getattr__ = lazy_names(__name__, _MODULE_OF)
