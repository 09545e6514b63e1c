"""Limits that hold for a row of any format."""

import pytest

from lit_ift.data.read.record import check_values
from lit_ift.errors import RowError


def test_text_counts_wherever_it_stands() -> None:
    messages = [{"role": "user", "content": "x" * 1_999_985}, {"role": "assistant", "content": "y" * 1_999_979}]
    # 4 + 7 characters in the keys of each message, 4 + 9 in the roles: 35 in all.
    check_values({"messages": messages, "id": "1"}, "f:1")
    with pytest.raises(RowError, match=r"f:1: field 'messages': the row has 4,000,001 characters") as caught:
        check_values({"messages": messages, "id": "12"}, "f:1")
    assert caught.value.reason == "unreadable"


@pytest.mark.slow
def test_nesting_of_any_depth_is_refused_without_recursion() -> None:
    value: object = "x"
    for _ in range(50_000):
        value = {"a": [value]}
    with pytest.raises(RowError, match=r"f:1: field 'deep': nested deeper than 100 levels"):
        check_values({"ok": [[1]], "deep": value}, "f:1")


def test_half_a_surrogate_pair_is_found_in_keys_too() -> None:
    check_values({"a": {"é😀": "日"}}, "f:1")
    with pytest.raises(RowError, match=r"f:1: field 'a': character 2 of the text is \\udc00, half of a surrogate"):
        check_values({"a": [{"x\udc00": 1}]}, "f:1")
