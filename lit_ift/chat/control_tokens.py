"""Control tokens and their look-alikes: what a message spells out is text, what the template writes is a token."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from lit_ift.chat.turn_format import added_tokens_pattern

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

LEFT, RIGHT, STAND_IN = "\U0010fffb", "\U0010fffc", "\U0010fffd"
"""Private-use characters: around look-alikes, and around the number that stands in for a control token."""

RESERVED: Final = re.compile(f"[{LEFT}{RIGHT}{STAND_IN}]")


class ControlTokens:
    """The tokens that only a template may write.

    These are the special added tokens, and other added tokens that delimit turns in the template. Not ``<think>`` or
    ``<tool_call>`` and whatever else has a closing twin, unless it is special: in an answer they are what reasoning
    and tool models learn to write.

    Args:
        tokenizer: a fast tokenizer.
        structure: texts that the template writes around turns.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", structure: Iterable[str]) -> None:
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        written = "\0".join(structure)
        added = tokenizer.added_tokens_decoder
        names = {token.content for token in added.values()}
        # White space tokens are ordinary text in templates and in messages.
        self.ids = {
            token.content: index
            for index, token in added.items()
            if token.content.strip()
            and (token.special or (token.content in written and not _is_markup(token.content, names)))
        }
        # What the vocabulary lacks must not become a target either.
        unknown = getattr(self._backend.model, "unk_token", None)
        unknown_id = None if unknown is None else self._backend.token_to_id(unknown)
        self.id_set = frozenset(self.ids.values()) | ({unknown_id} - {None})
        self.pattern = added_tokens_pattern(self.ids)
        self._placeholders = {content: f"{STAND_IN}{k}{STAND_IN}" for k, content in enumerate(self.ids)}

    def count(self, text: str) -> int:
        """How many control tokens `text` spells."""
        return len(self.pattern.findall(text))

    def is_in(self, strings: Sequence[str]) -> bool:
        """Whether any of `strings` spells a control token."""
        return self.pattern.search("\0".join(strings)) is not None

    def fence(self, value: Any) -> Any:
        """`value` with every control token in its strings between `LEFT` and `RIGHT`."""
        return map_strings(value, lambda text: self.pattern.sub(f"{LEFT}\\g<0>{RIGHT}", text))

    def hide(self, fenced: str) -> tuple[str, list[tuple[int, int]], int]:
        """A rendering with fences, made ready for `encode_hidden`.

        Returns:
            the text with a placeholder for each control token outside fences, and without the fences; for each
            placeholder the position after it there and the characters that it saves; the number of fenced tokens.
        """
        pattern = re.compile(f"{LEFT}(?:{self.pattern.pattern}){RIGHT}|{self.pattern.pattern}")
        pieces: list[str] = []
        saved: list[tuple[int, int]] = []
        length = position = num_fenced = 0
        for match in pattern.finditer(fenced):
            found = match.group()
            is_fenced = found[0] == LEFT
            new = found[1:-1] if is_fenced else self._placeholders[found]
            num_fenced += is_fenced
            pieces += [fenced[position : match.start()], new]
            length += match.start() - position + len(new)
            position = match.end()
            if not is_fenced:
                saved.append((length, len(found) - len(new)))
        pieces.append(fenced[position:])
        return "".join(pieces), saved, num_fenced

    def encode_hidden(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and offsets of a text from `hide`: placeholders become control tokens, look-alikes plain text."""
        backend, ids = self._hidden_backend
        encoding = backend.encode(text, add_special_tokens=False)
        return [ids.get(token, token) for token in encoding.ids], encoding.offsets

    @cached_property
    def _hidden_backend(self) -> tuple["Tokenizer", dict[int, int]]:
        """A copy of the tokenizer whose control tokens are spelt as placeholders, and the true ids of added tokens.

        One tokenizer for the whole text, so that white space and merges at the seams are as ever.
        """
        from tokenizers import Tokenizer

        state = json.loads(self._backend.to_str())
        state["truncation"] = state["padding"] = None
        true_ids = {}
        for token in state["added_tokens"]:
            token["content"] = self._placeholders.get(token["content"], token["content"])
            true_ids[token["content"]] = token["id"]
        backend = Tokenizer.from_str(json.dumps(state))
        here = {content: backend.token_to_id(content) for content in true_ids}
        return backend, {index: true_ids[content] for content, index in here.items() if index is not None}


def _is_markup(token: str, names: set[str]) -> bool:
    """Whether a token opens or closes an element, as ``<think>`` and ``</think>`` do."""
    return token.startswith("</") or (token.startswith("<") and f"</{token[1:]}" in names)


def map_strings(value: Any, function: Callable[[str], str]) -> Any:
    """`value` with `function` applied to every string in its lists and the values of its dicts."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, dict):
        return {key: map_strings(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_strings(item, function) for item in value]
    return value


def strings_in(value: Any, *, keys: bool = True) -> list[str]:
    """All strings in `value`, with or without the keys of its dicts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        pairs = ([key, item] if keys else [item] for key, item in value.items())
        return [text for pair in pairs for text in strings_in(pair, keys=keys)]
    return [text for item in value for text in strings_in(item, keys=keys)] if isinstance(value, (list, tuple)) else []


def keys_in(value: Any) -> list[str]:
    """All keys of the dicts in `value`."""
    own = list(map(str, value)) if isinstance(value, dict) else []
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return own + [key for item in inner for key in keys_in(item)]
