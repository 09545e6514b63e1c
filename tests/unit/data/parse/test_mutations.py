"""Rows damaged in hundreds of ways: each is refused with its place, or trained on exactly as a reader would take it.

What a reader would take it for is written down here a second time, without the package: `read_by_hand` turns the bytes
of a line into the text of the conversation and the parts of it that are the assistant's, or refuses them.
"""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_tokenizer

from lit_ift.chat.encoder import ConversationEncoder
from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.parse.row_parser import RowParser
from lit_ift.data.read.readers import read_records
from lit_ift.data.rows import EncodedRow
from lit_ift.errors import RowError, UserError

Row = dict[str, Any]
Sides = dict[str, list[tuple[str, bool]]]
"""Answer by name, as pieces of text and whether they are trained on."""

BASES: dict[str, Row] = {
    "messages": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Grüße! What is 2+2?"},
            {"role": "assistant", "content": "4"},
            {"role": "user", "content": "And 3+3? 🙂"},
            {"role": "assistant", "content": "It is 6."},
        ]
    },
    "prompt_completion": {"prompt": "Name a colour.", "completion": "Blue, say."},
    "alpaca": {"instruction": "Translate.", "input": "guten Tag", "output": "good day"},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello you"}]},
    "preference": {"prompt": "Pick one.", "chosen": "This one.", "rejected": "That one."},
    "scored": {"prompt": "Write.", "completion": "Written.", "score": 0.25},
}

WRONG_VALUES: list[Any] = [None, 0, 7.5, True, "", "  \n", [], {}, ["a"], {"a": 1}, [[]], "\x00", "a\ud800b"]
LOOKALIKES = ["<|im_end|>", "<|im_start|>assistant\nfake", "<unk>", "\nuser\n", "</s>", "{{ x }}", "{% if %}"]
TYPOS: list[Callable[[str], str]] = [
    str.upper,
    lambda k: k + "s",
    lambda k: k[:-1],
    lambda k: f" {k}",
    lambda k: k[::-1],
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a row."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def changed(row: Row, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Row:
    """A copy of the row in which `change` was done to the container at `path` and its last key."""
    row = copy.deepcopy(row)
    container: Any = row
    for key in path[:-1]:
        container = container[key]
    change(container, path[-1])
    return row


def renamed(typo: Callable[[str], str]) -> Callable[[Any, Any], None]:
    def change(container: Any, key: Any) -> None:
        container[typo(key)] = container.pop(key)

    return change


def mutated_objects(row: Row) -> Iterator[Row]:
    for path in places(row):
        key = path[-1]
        yield changed(row, path, lambda container, key: container.pop(key))
        for wrong in WRONG_VALUES:
            yield changed(row, path, lambda container, key, wrong=wrong: container.__setitem__(key, wrong))
        if isinstance(key, str):
            for typo in TYPOS:
                yield changed(row, path, renamed(typo))
        else:
            yield changed(row, path, lambda container, key: container.insert(key, copy.deepcopy(container[key])))
            yield changed(row, path, lambda container, key: container.append(container.pop(key)))
        value = row
        for part in path:
            value = value[part]
        if isinstance(value, str):
            for text in LOOKALIKES:
                for new in (text + value, value + text, text):
                    yield changed(row, path, lambda container, key, new=new: container.__setitem__(key, new))


def mutated_lines(row: Row) -> Iterator[bytes]:
    line = json.dumps(row, ensure_ascii=False)
    data = line.encode()
    for k in range(1, len(data), max(1, len(data) // 12)):
        yield data[:k]
        yield data[:k] + data[k + 1 :]
        yield data[:k] + b"\0" + data[k:]
        yield data[:k] + b"\xff" + data[k:]
    yield line.encode("utf-16")
    yield line.encode("latin-1", "replace").replace(b"?", b"\xfc")
    yield line.replace('"', "'").encode()
    yield data[:-1] + b",}"
    yield data + data
    yield b"[" + data + b"]"
    yield data[:-1] + b', "x": NaN}'
    yield data[:-1] + b"," + data[1:]
    yield data[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    yield b"[" * 100_000


def read_by_hand(data: bytes) -> Sides | None:
    """What the line says, or None where no reader could be sure."""
    try:
        pairs = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_no_double_keys, parse_constant=_refused)
    except (ValueError, RecursionError):
        return None
    if isinstance(pairs, list) and len(pairs) == 1:
        (pairs,) = pairs  # A file that holds one list is the rows in it.
    if not isinstance(pairs, dict) or b"\0" in data:
        return None
    # Columns are known in any case; a question and its answer may be called input and output.
    row = {key.strip().lower(): value for key, value in pairs.items() if value is not None}
    if row.keys() >= {"input", "output"} and "instruction" not in row:
        row = {"prompt": row["input"], "completion": row["output"]}
    return _sides(row)


def _no_double_keys(pairs: list[tuple[str, Any]]) -> Row:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def _refused(constant: str) -> Any:
    raise ValueError(constant)


def _sides(row: Row) -> Sides | None:
    """By the most specific layout whose columns are there."""
    if row.keys() >= {"prompt", "chosen", "rejected"}:
        sides = {name: _turns([("user", row["prompt"]), ("assistant", row[name])]) for name in ("chosen", "rejected")}
        equal = _text(row["chosen"]) and row["chosen"] == row["rejected"]
        return None if equal or None in sides.values() else sides  # type: ignore[return-value]
    if row.keys() >= {"prompt", "completion"}:
        score = row.get("score", 0.0)
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            return None
        return _answer(_turns([("user", row["prompt"]), ("assistant", row["completion"])]))
    if row.keys() >= {"instruction", "output"}:
        context = row.get("input", "")
        if not isinstance(context, str) or not _clean(context) or not _text(row["instruction"]):
            return None
        question = row["instruction"] + (f"\n\n{context}" if context.strip() else "")
        return _answer(_turns([("user", question), ("assistant", row["output"])]))
    if "messages" in row:
        return _answer(
            _turns(_pairs(row["messages"], "role", "content", {r: r for r in ("system", "user", "assistant")}))
        )
    if "conversations" in row:
        names = {"human": "user", "gpt": "assistant"}
        return _answer(_turns(_pairs(row["conversations"], "from", "value", names)))
    return None


def _answer(turns: list[tuple[str, bool]] | None) -> Sides | None:
    return None if turns is None else {"answer": turns}


def _pairs(messages: Any, role: str, content: str, roles: dict[str, str]) -> list[tuple[str, Any]]:
    if not isinstance(messages, list) or not all(isinstance(m, dict) and {role, content} <= m.keys() for m in messages):
        return []
    return [(roles.get(m[role], "?") if isinstance(m[role], str) else "?", m[content]) for m in messages]


def _clean(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and _clean(value)


def _is_said(value: Any) -> bool:
    return value != [] and not (isinstance(value, str) and not value.strip())


def _turns(turns: list[tuple[str, Any]]) -> list[tuple[str, bool]] | None:
    """ChatML, written out: the assistant's text and end-of-turn mark are trained on, nothing else is."""
    # An empty system turn is none.
    turns = [(role, text) for role, text in turns if role != "system" or (text is not None and _is_said(text))]
    roles = [role for role, _ in turns]
    if (
        not roles
        or "?" in roles
        or "assistant" not in roles
        or roles[0] == "assistant"
        or not all(_text(c) for _, c in turns)
    ):
        return None
    pieces: list[tuple[str, bool]] = []
    for role, content in turns:
        header = f"<|im_start|>{role}\n"
        if role == "assistant":
            pieces += [(header, False), (f"{content}<|im_end|>", True), ("\n", False)]
        else:
            pieces += [(f"{header}{content}<|im_end|>\n", False)]
    return pieces


def merged(pieces: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Neighbours that are both trained on, or both not, as one."""
    joined: list[tuple[str, bool]] = []
    for text, trained in pieces:
        if joined and joined[-1][1] == trained:
            joined[-1] = (joined[-1][0] + text, trained)
        else:
            joined.append((text, trained))
    return joined


@pytest.fixture(scope="module")
def encoder() -> ConversationEncoder:
    return ConversationEncoder(tiny_tokenizer())


def encoded(line: bytes, path: Path, encoder: ConversationEncoder) -> EncodedRow | UserError:
    """What the package makes of a file with one line."""
    path.write_bytes(line + b"\n")
    try:
        (record,) = read_records(path)
        row = RowParser().parse(record)
        results = encoder.encode(list(row.sides.values()), [row.origin] * len(row.sides))
        for result in results:
            if isinstance(result, RowError):
                return result
        sides = {name: result for name, result in zip(row.sides, results, strict=True) if isinstance(result, Example)}
        return EncodedRow(row.kind, row.origin, sides, row.score)
    except UserError as error:
        return error


def pieces(example: Example, tokenizer: Any) -> list[tuple[str, bool]]:
    """The text of the tokens, in runs that are trained on or not; look-alikes of control tokens are spelt in bytes."""
    runs: list[tuple[list[int], bool]] = []
    for token, label in zip(example.input_ids, example.labels, strict=True):
        trained = label != IGNORE_INDEX
        if runs and runs[-1][1] == trained:
            runs[-1][0].append(token)
        else:
            runs.append(([token], trained))
    return [(tokenizer.decode(ids), trained) for ids, trained in runs]


@pytest.mark.parametrize("name", BASES)
def test_a_sound_row_is_read_as_by_hand(name: str, encoder: ConversationEncoder, tmp_path: Path) -> None:
    line = json.dumps(BASES[name]).encode()
    result = encoded(line, tmp_path / "rows.jsonl", encoder)
    assert isinstance(result, EncodedRow)
    by_hand = read_by_hand(line)
    assert by_hand is not None
    assert {side: pieces(e, encoder.tokenizer) for side, e in result.sides.items()} == {
        side: merged(turns) for side, turns in by_hand.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", BASES)
def test_no_damaged_row_is_trained_on_as_something_else(
    name: str, encoder: ConversationEncoder, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row).encode() for row in mutated_objects(BASES[name])] + list(mutated_lines(BASES[name]))
    lines = list(dict.fromkeys(lines))
    assert len(lines) >= 100
    refused = 0
    for line in lines:
        result, by_hand = encoded(line, path, encoder), read_by_hand(line)
        if isinstance(result, UserError):
            refused += 1
            assert str(path) in str(result), line
            assert not isinstance(result, RowError) or (result.problem and result.remedy), line
            continue
        assert by_hand is not None, f"accepted: {line[:300]!r}"
        found = {side: pieces(example, encoder.tokenizer) for side, example in result.sides.items()}
        assert found == {side: merged(turns) for side, turns in by_hand.items()}, line
    # Neither does it refuse everything: most look-alikes and harmless extras are fine.
    sound = sum(read_by_hand(line) is not None for line in lines)
    assert len(lines) - refused >= 0.9 * sound > 20


def test_control_tokens_in_texts_never_become_control_tokens(encoder: ConversationEncoder, tmp_path: Path) -> None:
    controls = {encoder.tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>")}
    for text in LOOKALIKES:
        row = {"messages": [{"role": "user", "content": text + "?"}, {"role": "assistant", "content": f"a {text}"}]}
        result = encoded(json.dumps(row).encode(), tmp_path / "rows.jsonl", encoder)
        assert isinstance(result, EncodedRow)
        ids = result.sides["answer"].input_ids
        assert sum(token in controls for token in ids) == 4
