"""What is written comes back, from memory and from a file, in this process and in another."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.rows import SIDES, EncodedRow
from lit_ift.data.store import BATCH, StoredRows, write_rows

TOKEN = st.integers(0, 2**31 - 1)


@st.composite
def examples(draw: st.DrawFn, row_id: str) -> Example:
    ids = draw(st.lists(TOKEN, min_size=1, max_size=12))
    trained = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    labels = [token if on else IGNORE_INDEX for token, on in zip(ids, trained, strict=True)]
    counts = draw(st.tuples(*[st.integers(0, 5)] * 3))
    return Example(ids, labels, row_id, *counts)


@st.composite
def encoded_rows(draw: st.DrawFn) -> EncodedRow:
    kind = draw(st.sampled_from(list(SIDES)))
    row_id = draw(st.text(st.characters(exclude_categories=["Cs"])))
    names = [*SIDES[kind], *(["gold"] if kind == "preference" and draw(st.booleans()) else [])]
    score = draw(st.none() | st.floats(0, 1))
    return EncodedRow(kind, row_id, {name: draw(examples(row_id)) for name in names}, score)


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(encoded_rows(), max_size=6))
def test_rows_of_every_kind_come_back_as_they_were(rows: list[EncodedRow]) -> None:
    stored = StoredRows.in_memory(rows)
    assert list(stored) == rows
    assert stored.lengths.tolist() == [row.num_tokens for row in rows]


def many(count: int) -> list[EncodedRow]:
    return [
        EncodedRow(
            "instruction",
            f"a.jsonl:{i + 1}",
            {"answer": Example([i, i + 1], [IGNORE_INDEX, i + 1], f"a.jsonl:{i + 1}")},
        )
        for i in range(count)
    ]


def test_a_file_holds_more_than_one_batch_of_rows(tmp_path: Path) -> None:
    rows = many(2 * BATCH + 3)
    assert write_rows(iter(rows), tmp_path / "rows.arrow") == len(rows)
    stored = StoredRows(tmp_path / "rows.arrow")
    assert list(stored) == rows
    assert stored[BATCH - 1 : BATCH + 1] == rows[BATCH - 1 : BATCH + 1]
    assert stored[-1] == rows[-1]
    with pytest.raises(IndexError, match=f"row {len(rows)} of {len(rows)}"):
        stored[len(rows)]


@pytest.mark.parametrize("where", ["memory", "file"])
def test_worker_processes_get_the_same_rows(tmp_path: Path, where: str) -> None:
    rows = many(5)
    if where == "file":
        write_rows(rows, tmp_path / "rows.arrow")
        stored = StoredRows(tmp_path / "rows.arrow")
    else:
        stored = StoredRows.in_memory(rows)
    assert list(pickle.loads(pickle.dumps(stored))) == rows
