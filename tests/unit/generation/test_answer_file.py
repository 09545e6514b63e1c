"""Answers in a file: formats, what is in the way, and a call that goes on."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from rowfiles import jsonl

from lit_ift.chat.conversation import Conversation
from lit_ift.data import Source
from lit_ift.data.rows import Document
from lit_ift.errors import UserError
from lit_ift.generation.answer_file import (
    answer_all,
    check_form,
    check_output,
    identity,
    kept_file,
    write_answers,
)
from lit_ift.generation.engine import GenerationOptions
from lit_ift.generation.prompts import Prompt, read_prompts

SAMPLED = GenerationOptions(temperature=1.0, num_answers=2, seed=3)
IDS = [[i, i] for i in range(7)]


class Counting:
    """An engine whose answers tell prompt, seed and number; it stops as Ctrl-C does before a prompt."""

    def __init__(self, stop_before: int | None = None) -> None:
        self.stop_before = stop_before
        self.asked: list[int] = []

    def generate(self, prompts: Sequence[Sequence[int]], options: GenerationOptions) -> Iterator[tuple[int, list[str]]]:
        for index, prompt in reversed(list(enumerate(prompts))):  # In another order.
            if prompt[0] == self.stop_before:
                raise KeyboardInterrupt
            self.asked.append(prompt[0])
            yield index, [f"{prompt[0]} {options.seed} {n}" for n in range(options.num_answers)]


def prompt(question: str, expected: str | None = None, *more: dict[str, str]) -> Prompt:
    messages = [*more, {"role": "user", "content": question}]
    return Prompt("q.jsonl:1", Conversation(messages, num_prompt_messages=len(messages)), expected)


def test_a_stopped_call_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole = answer_all(Counting(), IDS, tmp_path / "a.jsonl", options=SAMPLED, model=[], chunk=3)
    assert whole == [[f"{i} {3 + i // 3 * 3} {n}" for n in range(2)] for i in range(7)]
    output = tmp_path / "b.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer_all(Counting(stop_before=4), IDS, output, options=SAMPLED, model=[], chunk=3)
    assert not output.exists()
    with kept_file(output).open("a") as file:
        file.write('[6, ["tor')  # As a killed process leaves it.
    engine = Counting()
    assert answer_all(engine, IDS, output, options=SAMPLED, model=[], chunk=3) == whole
    assert engine.asked == [5, 4, 3, 6]
    assert not output.exists()
    write_answers([prompt(str(i)) for i in range(7)], whole, output)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith("b.jsonl.answers")] == []


def test_answers_of_another_call_are_not_taken(tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    answer_all(Counting(), IDS, output, options=SAMPLED, model=["one"])
    with pytest.raises(UserError, match=r"\.a\.jsonl\.answers keeps answers of another call.*--overwrite"):
        answer_all(Counting(), IDS, output, options=SAMPLED, model=["another"])
    engine = Counting()
    answer_all(engine, IDS, output, options=SAMPLED, model=["another"], overwrite=True)
    assert sorted(engine.asked) == list(range(7))


def test_a_models_identity_changes_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = identity(str(tmp_path))
    assert identity(str(tmp_path)) == before
    (tmp_path / "config.json").write_text("{ }")
    assert identity(str(tmp_path)) != before
    assert identity("some/model") == ["some/model"]


def test_rows_are_read_again_as_data(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be short."}
    output = tmp_path / "out.jsonl"
    assert write_answers([prompt("Who?", "I"), prompt("You?", None, system)], [["a", "b"], ["c", "d"]], output) == 4
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert rows[1] == {
        "row_id": "q.jsonl:1",
        "sample": 1,
        "prompt": [{"role": "user", "content": "Who?"}],
        "completion": "b",
        "expected": "I",
    }
    again = read_prompts(Source(str(output)))
    assert [(p.question, p.expected) for p in again] == [("Who?", "a"), ("Who?", "b"), ("You?", "c"), ("You?", "d")]
    assert again[2].side.messages[0] == system


def test_alpaca_eval(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    prompts = [prompt("Who?", "I", {"role": "system", "content": "Be short."}), Prompt("t", Document("Once"), None)]
    check_form(prompts, GenerationOptions(), "alpaca_eval")
    write_answers(prompts, [["é"], ["upon"]], output, form="alpaca_eval", generator="mine")
    assert json.loads(output.read_text()) == [
        {"instruction": "Who?", "output": "é", "generator": "mine"},
        {"instruction": "Once", "output": "upon", "generator": "mine"},
    ]
    several = GenerationOptions(temperature=1.0, num_answers=2)
    with pytest.raises(UserError, match="one answer a prompt"):
        check_form(prompts, several, "alpaca_eval")
    turns = prompt("b", None, {"role": "user", "content": "a"}, {"role": "assistant", "content": "A"})
    with pytest.raises(UserError, match=r"q\.jsonl:1: .*one instruction a row, but the prompt has 3 turns"):
        check_form([turns], GenerationOptions(), "alpaca_eval")


def test_what_is_in_the_way(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("mine")
    with pytest.raises(UserError, match=r"exists: name another file, or say --overwrite"):
        check_output(output, overwrite=False)
    with pytest.raises(UserError, match="exists"):
        write_answers([prompt("a")], [["b"]], output)
    assert output.read_text() == "mine"
    check_output(output, overwrite=True)
    write_answers([prompt("a")], [["b"]], output, overwrite=True)
    assert json.loads(output.read_text())["completion"] == "b"
    with pytest.raises(UserError, match=r"end the name in \.jsonl"):
        check_output(tmp_path / "out.txt", overwrite=False)
    (tmp_path / "d.json").mkdir()
    with pytest.raises(UserError, match="name another file"):
        check_output(tmp_path / "d.json", overwrite=True)
    with pytest.raises(UserError, match="cannot be written"):
        answer_all(Counting(), IDS, output / "below" / "a.jsonl", options=SAMPLED, model=[])


def test_prompts_of_several_formats(tmp_path: Path) -> None:
    def found(name: str, *rows: dict[str, object]) -> list[tuple[str, str | None]]:
        (tmp_path / name).write_bytes(jsonl(list(rows)))
        return [(p.question, p.expected) for p in read_prompts(Source(str(tmp_path / name)))]

    user, bot = {"role": "user", "content": "a"}, {"role": "assistant", "content": "A"}
    assert found("m.jsonl", {"messages": [user, bot, user, bot]}, {"messages": [user, bot, user]}) == [
        ("a", "A"),
        ("a", None),
    ]
    assert found("p.jsonl", {"prompt": "q"}, {"prompt": "r", "completion": "s"}) == [("q", None), ("r", "s")]
    assert found("i.jsonl", {"instruction": "q", "input": "x", "output": "y", "generator": "g"}) == [("q\n\nx", "y")]
    assert found("c.jsonl", {"prompt": "q", "chosen": "good", "rejected": "bad"}) == [("q", "good")]
    assert found("k.jsonl", {"prompt": "q", "completion": "x", "label": True}) == [("q", "x")]
    assert found("t.jsonl", {"text": "Once upon"}) == [("Once upon", None)]
    with pytest.raises(UserError, match="there is no row"):
        found("none.jsonl")
    with pytest.raises(UserError, match=r"bad\.jsonl:2"):
        found("bad.jsonl", {"prompt": "q"}, {"completion": "no prompt"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"temperature=-1.0 must be at least 0"),
        ({"top_p": 0.9}, "top_p has no effect on greedy"),
        ({"num_answers": 2}, "2 greedy answers would be the same"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be"),
    ],
)
def test_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerationOptions(**options)  # type: ignore[arg-type]
