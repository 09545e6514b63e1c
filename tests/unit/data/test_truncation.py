"""Every policy keeps what it promises, on one side and on pairs."""

import pytest
from hypothesis import example as case
from hypothesis import given
from hypothesis import strategies as st

from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.rows import EncodedRow, RowKind
from lit_ift.data.truncation import Truncation, truncate
from lit_ift.errors import RowError

BOS = 1


def example(prompt: list[int], *turns: list[int], context: int = 2) -> Example:
    """A prompt, then trained turns with `context` untrained tokens between them."""
    ids, labels = list(prompt), [IGNORE_INDEX] * len(prompt)
    for k, turn in enumerate(turns):
        if k:
            ids += [7] * context
            labels += [IGNORE_INDEX] * context
        ids += turn
        labels += turn
    return Example(ids, labels, "rows#0")


def row(*sides: Example, kind: RowKind = "instruction") -> EncodedRow:
    names = ("answer",) if kind == "instruction" else ("chosen", "rejected", "gold")
    return EncodedRow(kind, "rows#0", dict(zip(names, sides, strict=False)))


def test_a_row_that_fits_is_the_same_object() -> None:
    whole = row(example([1, 5], [6, 7]))
    for policy in ("right", "left_of_prompt", "drop"):
        assert truncate(whole, max_length=4, policy=policy) is whole


def test_right_cuts_the_end() -> None:
    cut = truncate(row(example([1, 5], [6, 7, 8])), max_length=4, policy="right").sides["answer"]
    assert (cut.input_ids, cut.labels, cut.num_cut) == ([1, 5, 6, 7], [-100, -100, 6, 7], 1)


def test_left_of_prompt_keeps_the_bos_and_the_answer() -> None:
    cut = truncate(row(example([BOS, 4, 5], [6, 7, 8])), max_length=5, policy="left_of_prompt", bos_token_id=BOS).sides[
        "answer"
    ]
    assert (cut.input_ids, cut.labels, cut.num_cut) == ([BOS, 5, 6, 7, 8], [-100, -100, 6, 7, 8], 1)


def test_left_of_prompt_takes_the_rest_from_the_end_once_one_token_is_left() -> None:
    cut = truncate(row(example([4, 5, 9], [6, 7, 8])), max_length=3, policy="left_of_prompt").sides["answer"]
    assert (cut.input_ids, cut.labels, cut.num_cut) == ([9, 6, 7], [-100, 6, 7], 3)


def test_drop_names_the_length_that_would_do() -> None:
    with pytest.raises(
        RowError, match=r"rows#0: the row has 5 tokens, but max_length=4. Raise data.max_length to at"
    ) as e:
        truncate(row(example([1, 5], [6, 7, 8])), max_length=4, policy="drop")
    assert e.value.reason == "too_long"


def test_a_row_whose_targets_are_all_cut_off_is_refused() -> None:
    with pytest.raises(RowError, match="the first one is token 4 of 5") as error:
        truncate(row(example([1, 5, 5], [6, 7])), max_length=3, policy="right")
    assert error.value.reason == "no_target"


def test_a_side_whose_targets_are_all_cut_off_is_named() -> None:
    pair = row(example([1, 5], [6, 7]), example([1, 5, 9, 9], [6]), kind="preference")
    with pytest.raises(RowError, match="field 'rejected'"):
        truncate(pair, max_length=3, policy="right")


def test_both_sides_of_a_pair_lose_the_same_prompt() -> None:
    pair = row(example([BOS, 3, 4, 5], [6]), example([BOS, 3, 4, 5], [8, 9, 10]), kind="preference")
    cut = truncate(pair, max_length=5, policy="left_of_prompt", bos_token_id=BOS)
    assert cut.sides["chosen"].input_ids == [BOS, 5, 6]
    assert cut.sides["rejected"].input_ids == [BOS, 5, 8, 9, 10]


def test_a_pair_that_differs_only_in_what_is_cut_off_is_refused() -> None:
    pair = row(example([1, 5], [6, 7, 8]), example([1, 5], [6, 7, 9]), kind="preference")
    with pytest.raises(RowError, match="are the same within max_length=4"):
        truncate(pair, max_length=4, policy="right")


def test_a_prompt_never_loses_its_end() -> None:
    prompt = row(example([BOS, 4, 5, 6]))
    with pytest.raises(RowError, match="whose end is never cut off"):
        truncate(prompt, max_length=3, policy="right", bos_token_id=BOS)
    cut = truncate(prompt, max_length=3, policy="left_of_prompt", bos_token_id=BOS)
    assert cut.sides["answer"].input_ids == [BOS, 5, 6]


TOKENS = st.integers(2, 9)
TURN = st.lists(TOKENS, min_size=1, max_size=6)


def truncated(whole: EncodedRow, max_length: int, policy: Truncation) -> EncodedRow | RowError:
    try:
        return truncate(whole, max_length=max_length, policy=policy, bos_token_id=BOS)
    except RowError as error:
        return error


# Both sides fit and are the same: the longest row that is allowed would not mend it, so it is not "too long".
@case(bos=False, prompt=[2], answers=[[[2]], [[2]]], max_length=2, policy="drop")
@case(bos=False, prompt=[2], answers=[[[2]], [[2]]], max_length=2, policy="right")
# They are the same and do not fit.
@case(bos=False, prompt=[2], answers=[[[2, 3]], [[2, 3]]], max_length=2, policy="drop")
# The third answer alone does not fit.
@case(bos=False, prompt=[2], answers=[[[2]], [[3]], [[2, 3]]], max_length=2, policy="drop")
@given(
    bos=st.booleans(),
    prompt=st.lists(TOKENS, min_size=1, max_size=8),
    answers=st.lists(
        st.lists(st.lists(TOKENS, min_size=1, max_size=6), min_size=1, max_size=3), min_size=1, max_size=3
    ),
    max_length=st.integers(2, 20),
    policy=st.sampled_from(["right", "left_of_prompt", "drop"]),
)
def test_nothing_but_what_the_policy_says_is_lost(
    bos: bool, prompt: list[int], answers: list[list[list[int]]], max_length: int, policy: Truncation
) -> None:
    prompt = [BOS] * bos + prompt
    sides = [example(prompt, *turns) for turns in answers]
    whole = row(*sides, kind="instruction" if len(sides) == 1 else "preference")
    cut = truncated(whole, max_length, policy)
    if isinstance(cut, RowError):
        same = len(sides) > 1 and sides[0].input_ids == sides[1].input_ids
        is_long = any(len(side.input_ids) > max_length for side in sides)
        assert same or is_long
        assert cut.reason == ("too_long" if policy == "drop" and is_long else "no_target")
        return
    assert policy != "drop" or cut is whole
    lefts = set()
    for before, after in zip(sides, cut.sides.values(), strict=True):
        assert len(after.input_ids) <= max_length
        assert after.num_targets > 0
        assert len(before.input_ids) - len(after.input_ids) == after.num_cut
        assert all(label in (IGNORE_INDEX, token) for token, label in zip(after.input_ids, after.labels, strict=True))
        assert not bos or after.input_ids[0] == BOS
        # The first trained token stays where the prompt ends, and the tokens after it are those that followed it.
        left = len(prompt) - next(k for k, label in enumerate(after.labels) if label != IGNORE_INDEX)
        lefts.add(left)
        start = len(prompt) - left
        assert after.input_ids[start:] == before.input_ids[len(prompt) :][: len(after.input_ids) - start]
        assert after.labels[start:] == before.labels[len(prompt) :][: len(after.labels) - start]
        assert after.input_ids[bos:start] == prompt[bos + left :]
    assert len(lefts) == 1
    assert policy == "left_of_prompt" or lefts == {0}
