"""Rows of each kind: what is read of them, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from rowfiles import jsonl, write

from lit_ift.errors import RowError, UserError
from lit_ift.evaluation.kinds import KINDS, read_rows

ARC = {
    "question": {"stem": "Q", "choices": [{"text": "no", "label": "A"}, {"text": "yes", "label": "B"}]},
    "answerKey": "B",
}
CHOICES = {"text": ["no", "yes"], "label": ["A", "B"]}
TRUTH = {"question": "Q", "mc1_targets": {"no": 0, "yes": 1, "perhaps": 0}, "mc2_targets": {"no": 0, "yes": 1, "si": 1}}


def document(tmp_path: Path, kind: str, row: dict[str, Any]) -> dict[str, Any]:
    (found,) = read_rows(kind, str(write(tmp_path / "rows.jsonl.gz", jsonl([row]))), None).documents
    assert found.pop("item") == "1"
    return found


@pytest.mark.parametrize(
    "row",
    [
        ARC,
        {"question": "Q", "choices": CHOICES, "answerKey": "B"},
        {"question": "Q", "choices": ["no", "yes"], "answer": 1},
        {"question": "Q", "choices": ["no", "yes"], "answer": "B"},
        {"question": "Q", "choices": ["no", "yes"], "answer": "yes"},
    ],
)
def test_choices_in_all_forms_are_those_of_arc(tmp_path: Path, row: dict[str, Any]) -> None:
    assert document(tmp_path, "arc", row) == {"question": "Q", "choices": CHOICES, "answerKey": "B"}


def test_the_right_choices_of_truthfulqa_come_first(tmp_path: Path) -> None:
    first = document(tmp_path, "truthfulqa_mc1", TRUTH)
    assert first["mc1_targets"] == {"choices": ["yes", "no", "perhaps"], "labels": [1, 0, 0]}
    second = document(tmp_path, "truthfulqa_mc2", TRUTH)
    assert second["mc2_targets"] == {"choices": ["yes", "si", "no"], "labels": [1, 1, 0]}
    as_on_the_hub = {"question": "Q", "mc1_targets": {"choices": ["no", "yes"], "labels": [0, 1]}}
    assert document(tmp_path, "truthfulqa_mc1", as_on_the_hub)["mc1_targets"]["choices"] == ["yes", "no"]


def test_questions_with_one_answer(tmp_path: Path) -> None:
    assert document(tmp_path, "gsm8k", {"question": "Q", "answer": "so\n#### 1,000"})["answer"] == "so\n#### 1,000"
    assert document(tmp_path, "exact_match", {"input": "Q", "target": 4}) == {"question": "Q", "answer": "4"}


@pytest.mark.parametrize(
    ("kind", "row", "wanted"),
    [
        ("gsm8k", {"question": "Q", "answer": "4"}, "does not end in '#### NUMBER'"),
        ("gsm8k", {"question": " ", "answer": "#### 4"}, "not a text"),
        ("exact_match", {"question": "Q"}, "answer or target or completion"),
        ("arc", {"question": "Q", "choices": ["a"], "answer": 0}, "two texts or more"),
        ("arc", {"question": "Q", "choices": ["a", "b"], "answer": 2}, "names none of the 2 choices"),
        ("arc", {"question": "Q", "choices": ["a", "b"], "answer": True}, "names none of the 2 choices"),
        ("arc", {"question": None, "choices": ["a", "b"], "answer": 1}, "field 'question'"),
        ("truthfulqa_mc1", {"question": "Q", "mc1_targets": {"a": 1, "b": 1, "c": 0}}, "one right one"),
        ("truthfulqa_mc2", {"question": "Q", "mc2_targets": {"a": 1}}, "has 1 right and 0 wrong"),
        ("truthfulqa_mc2", {"question": "Q"}, "field 'mc2_targets'"),
        (
            "ifeval",
            {"prompt": "P", "instruction_id_list": ["punctuation:no_comma"], "kwargs": []},
            "one object for each",
        ),
    ],
)
def test_bad_rows_name_their_line(tmp_path: Path, kind: str, row: dict[str, Any], wanted: str) -> None:
    with pytest.raises(RowError, match=r"rows\.jsonl:1: ") as caught:
        read_rows(kind, str(write(tmp_path / "rows.jsonl", jsonl([row]))), None)
    assert wanted in str(caught.value)


def test_the_first_rows_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", jsonl([{"question": str(i), "answer": "#### 1"} for i in range(3)]))
    rows = read_rows("gsm8k", str(path), 2)
    assert [row["item"] for row in rows.documents] == ["1", "2"]
    assert rows.total == 3


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no row in it"):
        read_rows("gsm8k", str(write(tmp_path / "rows.jsonl", b"")), None)


@pytest.mark.slow
def test_instructions_that_cannot_be_checked_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    comma, sentences, own = "punctuation:no_comma", "length_constraints:number_sentences", "my:own"
    rows = [
        ([comma], [{}]),
        ([comma, sentences], [{}, {"num_sentences": 3, "relation": "at least"}]),
        ([own, sentences], [{}, {"num_sentences": 3, "relation": "at least"}]),
        (["combination:repeat_prompt"], [{"prompt_to_repeat": "P", "unused": None}]),
    ]
    content = [{"key": 1, "prompt": "P", "instruction_id_list": names, "kwargs": values} for names, values in rows]
    found = read_rows("ifeval", str(write(tmp_path / "rows.jsonl", jsonl(content))), None)
    assert [row["item"] for row in found.documents] == ["1", "4"]
    assert found.left_out == {
        f"{sentences}: needs nltk's punkt: python -m nltk.downloader punkt_tab": 2,
        f"{own}: the harness has no checker of this kind": 1,
    }
    bad = [{"prompt": "P", "instruction_id_list": [comma], "kwargs": [{"number": 3}]}]
    with pytest.raises(
        RowError, match=r"rows.jsonl:1: field 'kwargs\[0\]': the checker of punctuation:no_comma refuses"
    ):
        read_rows("ifeval", str(write(tmp_path / "rows.jsonl", jsonl(bad))), None)
    with pytest.raises(UserError, match=r"no row of 1 can be scored. my:own: the harness has no checker"):
        read_rows(
            "ifeval",
            str(write(tmp_path / "rows.jsonl", jsonl([content[2] | {"instruction_id_list": [own], "kwargs": [{}]}]))),
            None,
        )


def test_kinds_name_tasks_that_the_harness_has() -> None:
    from importlib.util import find_spec

    spec = find_spec("lm_eval.tasks")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    assert all(kind.task is None or (folder / kind.task).is_file() for kind in KINDS.values())
