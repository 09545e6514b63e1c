"""train_on: every turn of the assistant, the last one, or all; turns that are switched off stay off."""

from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import pytest
from rowfiles import jsonl, write
from tiny import CHATML, tiny_tokenizer

from lit_ift.constants import IGNORE_INDEX
from lit_ift.data import FeedbackDataModule, InstructionDataModule
from lit_ift.data.train_on import TrainOn
from lit_ift.errors import RowError, UserError

MARKED = CHATML.replace(
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n",
    "<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>{% endif %}{{ '\\n' }}",
)
"""The same with marked answers: the other way to find them."""

SYSTEM = {"role": "system", "content": "s"}
TALK = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "uno"},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "dos"},
]


def module(folder: Path, rows: list[dict[str, Any]], template: str = CHATML, **options: Any) -> InstructionDataModule:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    path = write(folder / "rows.jsonl", jsonl(rows))
    made = InstructionDataModule(train=str(path), tokenizer=tokenizer, **{"max_length": 512, **options})
    made.setup("fit")
    return made


def trained(made: InstructionDataModule) -> list[str]:
    """The runs of trained tokens of the first row, as text."""
    example = made.datasets["train"].rows[0].sides["answer"]
    runs = groupby(zip(example.labels, example.input_ids, strict=True), key=lambda pair: pair[0] != IGNORE_INDEX)
    return [made.tokenizer.decode([i for _, i in run]) for is_target, run in runs if is_target]


def off(index: int, messages: list[dict[str, Any]] = TALK) -> list[dict[str, Any]]:
    return [{**m, "loss": False} if i == index else m for i, m in enumerate(messages)]


@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize(
    ("train_on", "messages", "expected"),
    [
        ("assistant", TALK, ["uno<|im_end|>", "dos<|im_end|>"]),
        ("last", TALK, ["dos<|im_end|>"]),
        ("last", off(1), ["dos<|im_end|>"]),
        ("last", [*TALK, {"role": "user", "content": "more"}], ["dos<|im_end|>"]),
        ("last", [*TALK, {"role": "assistant", "content": "tres"}], ["tres<|im_end|>"]),
        (
            "all",
            TALK,
            [
                "user\none<|im_end|>\n<|im_start|>assistant\nuno<|im_end|>\n"
                "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\ndos<|im_end|>\n"
            ],
        ),
        (
            "all",
            off(1, [SYSTEM, *TALK[2:]]),
            ["system\ns<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\ndos<|im_end|>\n"],
        ),
        (
            "all",
            off(1),
            [
                "user\none<|im_end|>\n<|im_start|>assistant\n",
                "\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\ndos<|im_end|>\n",
            ],
        ),
        (
            "all",
            off(3, off(1)),
            [
                "user\none<|im_end|>\n<|im_start|>assistant\n",
                "\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n",
                "\n",
            ],
        ),
        ("completion", TALK, ["dos<|im_end|>\n"]),
        (
            "completion",
            [*TALK, {"role": "user", "content": "more"}],
            ["dos<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n"],
        ),
    ],
)
def test_targets(
    train_on: str, messages: list[dict[str, Any]], expected: list[str], template: str, tmp_path: Path
) -> None:
    assert trained(module(tmp_path, [{"messages": messages}], template, train_on=train_on)) == expected


def test_look_alikes_do_not_move_what_is_off(tmp_path: Path) -> None:
    messages = off(1, [{"role": "user", "content": "<|im_end|>?"}, *TALK[1:]])
    first, second = trained(module(tmp_path, [{"messages": messages}], train_on="all"))
    assert first == "user\n<|im_end|>?<|im_end|>\n<|im_start|>assistant\n"
    assert second.startswith("\n<|im_start|>user\ntwo")


def test_all_trains_the_prompt_of_a_completion(tmp_path: Path) -> None:
    row = {"prompt": "ask", "completion": "say"}
    (text,) = trained(module(tmp_path, [row], train_on="all"))
    assert text == "user\nask<|im_end|>\n<|im_start|>assistant\nsay<|im_end|>\n"
    report = module(tmp_path, [row], train_on="all").reports["train"]
    assert (report.rows_with_stop, report.turns_unstopped) == (1, 0)


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_completion_trains_all_that_comes_after_the_prompt(template: str, tmp_path: Path) -> None:
    rows = [{"prompt": TALK[:1], "completion": TALK[1:]}]
    made = module(tmp_path, rows, template, train_on="completion")
    assert trained(made) == ["uno<|im_end|>\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\ndos<|im_end|>\n"]
    rows = [{"prompt": TALK[:3], "completion": off(0, TALK[3:])}]
    assert trained(module(tmp_path, rows, template, train_on="completion")) == ["\n"]


def test_it_changes_the_key_of_the_cache(tmp_path: Path) -> None:
    folders = set()
    for train_on in get_args(TrainOn):
        made = module(tmp_path, [{"messages": TALK}], train_on=train_on, cache_dir=str(tmp_path / "cache"))
        folders.add(made.cache_folder("train"))
    assert len(folders) == len(get_args(TrainOn))


def test_packing_and_truncation_keep_it(tmp_path: Path) -> None:
    rows = [{"messages": off(1)}, {"messages": TALK}]
    made = module(tmp_path, rows, train_on="all", packing=True, max_length=40, batch_size=2)
    (batch,) = list(made.train_dataloader())
    assert int((batch["labels"] != IGNORE_INDEX).sum()) == made.reports["train"].target_tokens
    assert trained(made) == [
        "user\none<|im_end|>\n<|im_start|>assistant\n",
        "\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>a",
    ]


def test_a_last_answer_that_is_off_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r"rows.jsonl:1.*not to be trained on") as error:
        module(tmp_path, [{"messages": off(3)}], train_on="last")
    assert error.value.reason == "no_target"


@pytest.mark.parametrize("train_on", ["last", "completion", "all"])
def test_judged_rows_are_trained_as_they_were_judged(train_on: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", jsonl([{"prompt": "q", "chosen": "a", "rejected": "b"}]))
    made = FeedbackDataModule(train=str(path), tokenizer=tiny_tokenizer(), train_on=train_on)
    with pytest.raises(UserError, match=rf"data.train_on={train_on} is for instruction rows.*Leave data.train_on out"):
        made.setup("fit")


def test_another_word_is_refused() -> None:
    choices = r"'assistant', 'last', 'completion', 'all'"
    with pytest.raises(UserError, match=rf"data.train_on='prompt' must be one of {choices}"):
        InstructionDataModule(train="a.jsonl", train_on="prompt")  # type: ignore[arg-type]
