"""Which tokenizer and chat template encode the rows: those of the data, or of the module that trains."""

import json
from typing import Any

from lit_ift.chat.encoder import is_built_in_template, resolve_chat_template, with_bos
from lit_ift.chat.templates import check_fast, plain_marks, tokenizer_name
from lit_ift.errors import UserError
from lit_ift.models.added_tokens import ZEPHYR
from lit_ift.models.load import load_tokenizer


class TokenizerChoice:
    """Chooses between the tokenizer of a data module and that of a training module, and sets the chat template.

    Args:
        chat_template: built-in name, file or jinja text; None for the tokenizer's own.
    """

    def __init__(self, chat_template: str | None) -> None:
        self._is_built_in = chat_template is not None and is_built_in_template(chat_template)
        self._template = None if chat_template is None else resolve_chat_template(chat_template)
        self._loaded: dict[str, Any] = {}

    def choose(self, source: Any, module: Any) -> Any:
        """The tokenizer to encode with, with the chat template set.

        Args:
            source: folder, hub id or tokenizer; None for the module's.
            module: that trains; None if there is none yet.

        Raises:
            UserError: there is no tokenizer, or it does not fit the module's.
        """
        if source is None:
            chosen = of_module = getattr(module, "tokenizer", None)
        else:
            if isinstance(source, str) and source not in self._loaded:
                self._loaded[source] = load_tokenizer(source)
            chosen = self._loaded[source] if isinstance(source, str) else source
            of_module = _share_tokenizer(chosen, module)
        if chosen is None:
            raise UserError(
                "No tokenizer: neither data.tokenizer nor a tokenizer on the module. Set data.tokenizer to a folder "
                "or a hub id."
            )
        if of_module is not None and chosen.get_vocab() != of_module.get_vocab():
            raise UserError("data.tokenizer has another vocabulary than the model's tokenizer. Remove data.tokenizer.")
        template = with_bos(self._template, chosen) if self._template and self._is_built_in else self._template
        for tokenizer in (chosen, of_module):
            # The module's own copy is the one that is exported, and must export the template that was trained.
            if tokenizer is not None and template is not None:
                tokenizer.chat_template = template
        if of_module is not None and chosen.chat_template != of_module.chat_template:
            raise UserError(
                "data.tokenizer has another chat template than the model's tokenizer, which is the one that is "
                "exported. Set data.chat_template, or remove data.tokenizer."
            )
        check_fast(chosen)
        if template is not None and (marks := plain_marks(chosen)):
            raise UserError(
                f"The chat template ends turns with a mark that the tokenizer {tokenizer_name(chosen)} has no token "
                f"for, so it would be several plain ones. Set model.added_tokens to {json.dumps(marks)}, or use "
                f"{ZEPHYR}."
            )
        return chosen


def _share_tokenizer(tokenizer: Any, module: Any) -> Any:
    """The tokenizer of a module that has one; a `CausalLMModule` that knows none is given `tokenizer`."""
    if not getattr(module, "knows_tokenizer", True):
        module.tokenizer = tokenizer
    return getattr(module, "tokenizer", None)
