"""Prompts that are templated already are refused; texts that only quote a template are not."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lit_ift.chat.conversation import Conversation, TemplatedPromptError
from lit_ift.chat.encoder import ConversationEncoder
from lit_ift.chat.example import Example
from lit_ift.data.pipeline import NUM_JUDGED, EncodingOptions, ResolvedSource, encode_sources
from lit_ift.data.read.readers import read_records
from lit_ift.data.report.builder import ReportBuilder
from lit_ift.errors import RowError, UserError

TEMPLATED = {
    "chatml": "<|im_start|>user\nSay 1<|im_end|>\n<|im_start|>assistant\n",
    "llama 3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nSay 1<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "zephyr": "<|user|>\nSay 1</s>\n<|assistant|>\n",
    "gemma": "<start_of_turn>user\nSay 1<end_of_turn>\n<start_of_turn>model\n",
    "mistral": "<s>[INST] Say 1 [/INST]",
}


def talk(question: str, *more: str) -> Conversation:
    roles = ("user", "assistant")
    texts = (question, "ok", *more)
    return Conversation([{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)])


@pytest.mark.parametrize("name", TEMPLATED)
def test_a_templated_prompt_is_a_row_error(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    encoder = ConversationEncoder(tokenizer)
    for index, conversation in ((0, talk(TEMPLATED[name])), (2, talk("Hi", TEMPLATED[name].strip(), "ok"))):
        result = encoder.encode([conversation], ["rows.jsonl:1"])[0]
        assert isinstance(result, TemplatedPromptError)
        assert result.field == f"messages[{index}].content"
        assert "templated already" in result.problem
        assert "bare question" in result.remedy
    prompt = Conversation([{"role": "user", "content": TEMPLATED[name]}], num_prompt_messages=1)
    assert isinstance(encoder.encode([prompt], ["rows.jsonl:1"])[0], TemplatedPromptError)


def test_the_template_in_use_is_known_too(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'].upper() + ': ' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
    )
    result = ConversationEncoder(tokenizer).encode([talk("USER: Hi<|im_end|>\nASSISTANT:")], ["rows.jsonl:1"])[0]
    assert isinstance(result, TemplatedPromptError)


@pytest.mark.parametrize(
    "text",
    [
        "What does <|im_start|> mean in a chat template?",
        "Explain <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|> to me.",
        'Which role has "<|assistant|>"?',
        "Say [INST] hi [/INST] twice",
    ],
)
def test_a_quoted_template_is_fine(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert isinstance(ConversationEncoder(tokenizer).encode([talk(text)], ["rows.jsonl:1"])[0], Example)


def encode_file(
    path: Path, tokenizer: PreTrainedTokenizerFast, rows: list[bool], *, on_bad_row: Any = "skip"
) -> ReportBuilder:
    """Encode a file with one row for each of `rows`, whose prompt is templated where that is true."""
    prompts = [TEMPLATED["chatml"] if templated else f"Say {k}" for k, templated in enumerate(rows)]
    path.write_text("".join(json.dumps({"prompt": p, "completion": "ok"}) + "\n" for p in prompts), encoding="utf-8")
    report = ReportBuilder("train", tokenizer, max_length=64, truncation="right")
    sources = [ResolvedSource("first", lambda skip: read_records(path, on_row_error=skip))]
    options = EncodingOptions(tokenizer, 64, "right", frozenset({"instruction"}), on_bad_row=on_bad_row)
    for _ in encode_sources(sources, options, report):
        pass
    return report


@pytest.mark.parametrize(
    ("rows", "stops"),
    [
        ([True] * 3, True),
        ([True, True, False], True),
        ([True, False], False),
        ([False] * 40 + [True] * 39, False),
        ([True] * (NUM_JUDGED // 2 + 1) + [False] * 300, True),
        ([True] * (NUM_JUDGED // 2) + [False] * 60, False),
        ([False] * NUM_JUDGED + [True] * 300, False),
    ],
)
def test_a_source_stops_if_most_of_its_first_prompts_are_templated(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, rows: list[bool], stops: bool
) -> None:
    path = tmp_path / "rows.jsonl"
    if stops:
        with pytest.raises(UserError, match=r"first: \d+ of the first \d+ prompts are templated .*bare question"):
            encode_file(path, tokenizer, rows)
        return
    report = encode_file(path, tokenizer, rows).build()
    assert report.rows_kept == rows.count(False)
    assert report.rows_skipped == rows.count(True)


def test_one_templated_row_stops_a_run_that_takes_no_bad_rows(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(RowError, match=r"rows.jsonl:3: .*templated already"):
        encode_file(tmp_path / "rows.jsonl", tokenizer, [False, False, True, False], on_bad_row="error")
