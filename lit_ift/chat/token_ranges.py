"""Ranges of characters to ranges of tokens."""

from bisect import bisect_left
from typing import TYPE_CHECKING

from lit_ift.chat.conversation import EncodingError
from lit_ift.chat.templates import Span

if TYPE_CHECKING:
    from tokenizers import Encoding


TokenRange = tuple[int, int, bool]
"""First token, one past the last token, and whether the token before reaches into the characters."""


class TokenRanges:
    """Finds the tokens of characters, in an encoding or in a list of offsets."""

    def __init__(self, encoding: "Encoding | None", offsets: list[Span] | None) -> None:
        self._encoding = encoding
        self._offsets = offsets
        self._begins: list[int] | None = None

    def range(self, span: Span, text: str) -> TokenRange:
        """First token of a span, one past its last token, and whether the token before reaches into the span.

        Raises:
            EncodingError: the tokens do not reach the end of the span.
        """
        if span[0] == span[1]:
            return 0, 0, False
        quick = self._quick_range(span) if self._encoding is not None else None
        if quick is not None:
            return quick
        return self._range_by_offsets(span, text)

    def _quick_range(self, span: Span) -> TokenRange | None:
        """The usual case, without a Python object for every offset: tokens begin and end with the span."""
        encoding = self._encoding
        assert encoding is not None
        first, last = encoding.char_to_token(span[0]), encoding.char_to_token(span[1] - 1)
        if first is None or last is None:
            return None
        fits = _chars(encoding, first)[0] == span[0] and _chars(encoding, last)[1] == span[1]
        # A character may have several tokens, and blanks whose offsets are trimmed have no width.
        goes_on = last + 1 < len(encoding) and _chars(encoding, last + 1)[0] < span[1]
        began_before = first > 0 and _chars(encoding, first - 1)[1] > span[0]
        return (first, last + 1, False) if fits and not goes_on and not began_before else None

    def _range_by_offsets(self, span: Span, text: str) -> TokenRange:
        if self._offsets is None:
            assert self._encoding is not None
            self._offsets = self._encoding.offsets
        if self._begins is None:
            # Zero-width tokens are blanks whose offsets the tokenizer trimmed: they begin where the token before ended.
            ends = [0, *(end for _, end in self._offsets)]
            self._begins = [ends[k] if start == end else start for k, (start, end) in enumerate(self._offsets)]
        begin = bisect_left(self._begins, span[0])
        end = bisect_left(self._begins, span[1], lo=begin)
        if begin == end or self._offsets[end - 1][1] < span[1]:
            problem = f"the tokens of the answer do not reach its end ({text[max(span[0], span[1] - 20) : span[1]]!r})"
            remedy = "The tokenizer drops characters; mend the row or use another tokenizer"
            raise EncodingError("messages", problem, remedy)
        return begin, end, begin > 0 and self._offsets[begin - 1][1] > span[0]


def _chars(encoding: "Encoding", token: int) -> Span:
    """The characters of a token; none for one that has no text."""
    found: Span | None = encoding.token_to_chars(token)
    return found or (0, 0)
