"""Masks under the chat templates of many families of models, by kinds of conversations that come from files.

What must come out is written down here by hand, family by family. With the environment variable LIT_IFT_WRITE_TABLES=1
the tests write the table to docs/chat-templates.md; otherwise they check that it is up to date.
"""

import json
import lzma
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lit_ift.chat.conversation import Conversation
from lit_ift.chat.encoder import ConversationEncoder
from lit_ift.chat.example import Example
from lit_ift.chat.templates import DAY, with_fixed_day
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.parse.row_parser import to_row
from lit_ift.data.read.readers import Record, read_records
from lit_ift.data.report.builder import ReportBuilder
from lit_ift.data.rows import EncodedRow
from lit_ift.errors import RowError

PAGE = Path(__file__).parents[3] / "docs" / "chat-templates.md"

FOLDER = Path(__file__).parent / "chat_templates"

TRL: dict[str, str] = json.loads(lzma.decompress((FOLDER / "trl.json.xz").read_bytes()))
"""The templates of trl, as ``chat_templates/record.py`` recorded them."""


@dataclass(frozen=True)
class Family:
    """What a template writes inside an assistant's turn.

    Args:
        end: end-of-turn text of the last message.
        inside_end: that of other turns, if another.
        lead: what stands between the generation prompt and the text of the last message.
        inside_lead: that of other turns, if another.
        trims: how outer white space of an answer is trimmed.
        call: what a turn that calls ``get_time(city=Oslo)`` holds, with its end-of-turn text; None if it cannot.
        after_call: what stands before the text of an answer to a tool, if another.
        thinks: last turn with the thinking ``mm`` given apart; None if the template shows none.
        thinks_inside: the same for a turn before, if its thinking is kept.
        writes_thinks: last turn with a think block in its text; None if that is text like any other.
        inside_writes_thinks: the same for a turn before.
        json_arguments: arguments of calls must be a JSON string.
        prefills: what the generation prompt writes, but the generation blocks of trl's training template mark.
    """

    end: str
    inside_end: str | None = None
    lead: str = ""
    inside_lead: str | None = None
    trims: Callable[[str], str] = str
    call: str | None = None
    after_call: str | None = None
    thinks: str | None = None
    thinks_inside: str | None = None
    writes_thinks: str | None = None
    inside_writes_thinks: str | None = None
    json_arguments: bool = False
    prefills: frozenset[str] = field(default_factory=frozenset)

    def turn(self, text: str, *, inside: bool = False) -> str:
        end = self.inside_end if inside and self.inside_end is not None else self.end
        lead = self.inside_lead if inside and self.inside_lead is not None else self.lead
        return lead + self.trims(text) + end


IM = "<|im_end|>"
XML_CALL = "<tool_call>\n<function=get_time>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>"
JSON_CALL = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n</tool_call>' + IM
LFM_CALL = "<|tool_call_start|>[get_time(city='Oslo')]<|tool_call_end|>" + IM
GEMMA_CALL = '<|tool_call>call:get_time{city:<|"|>Oslo<|"|>}<tool_call|>'
LLAMA_CALL = '{"name": "get_time", "parameters": {"city": "Oslo"}}<|eot_id|>'
DEEPSEEK_END = "<｜end▁of▁sentence｜>"

LFM = Family(IM, thinks=f"<think>mm</think>so{IM}", inside_writes_thinks=f"so{IM}", call=LFM_CALL)
LLAMA = Family("<|eot_id|>", trims=str.strip, call=LLAMA_CALL)
GEMMA4 = Family("<turn|>", trims=str.strip, call=GEMMA_CALL + "<|tool_response>")
GEMMA4_THINKS = "<|channel>thought\nmm\n<channel|>so<turn|>"
# The generation prompt ends with "<think>\n". A turn without thinking goes on with "\n</think>", and its first line
# break is one token with the prompt's last one, so it is no target.
QWEN3_5 = Family(
    IM,
    lead="</think>\n\n",
    inside_lead="",
    trims=str.strip,
    call=f"</think>\n\n{XML_CALL}{IM}",
    thinks=f"mm\n</think>\n\nso{IM}",
    writes_thinks=f"mm\n</think>\n\nso{IM}",
    inside_writes_thinks=f"so{IM}",
    prefills=frozenset({"<think>\n", "<think>\n\n"}),
)
# The generation prompt ends with "<think>\n", but turns begin with "<think></think>": they share "<think>".
NEMOTRON = Family(
    IM,
    lead="</think>",
    trims=str.rstrip,
    call=f"</think>\n{XML_CALL}\n{IM}",
    thinks=f"mm\n</think>\nso{IM}",
    thinks_inside=f"</think>\nso{IM}",
    writes_thinks=f"mm\n</think>\n\nso{IM}",
    inside_writes_thinks=f"</think>\n\nso{IM}",
    prefills=frozenset({"<think>", "<think>\n"}),
)
NEMOTRON_TIGHT = Family(**{**vars(NEMOTRON), "thinks": f"mm</think>so{IM}", "thinks_inside": f"</think>so{IM}"})

# The start of the generation prompt that it writes after the last answer is no part of it.
COMMAND_CALL = (
    '<|START_ACTION|>[{"tool_name": "get_time", "parameters": {"city": "Oslo"}}]<|END_ACTION|><|END_OF_TURN_TOKEN|>'
)
COMMAND = Family(
    "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    lead="<|START_RESPONSE|>",
    call="<|START_THINKING|><|END_THINKING|>" + COMMAND_CALL,
)

FAMILIES: dict[str, Family] = {
    "cohere": Family("<|END_OF_TURN_TOKEN|>", trims=str.strip),
    "cohere2": Family("<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    "deepseek_r1_distill": Family(DEEPSEEK_END, prefills=frozenset({"<｜Assistant｜>"})),
    "deepseekv3": Family(
        DEEPSEEK_END,
        prefills=frozenset({"<｜Assistant｜>"}),
        json_arguments=True,
        call="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n"
        f'{{"city": "Oslo"}}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>{DEEPSEEK_END}',
    ),
    # After the answer of a tool its generation prompt is empty, but the next turn begins with a header.
    "diffusion_gemma": Family(**{**vars(GEMMA4), "thinks": GEMMA4_THINKS, "after_call": "<|turn>model\n"}),
    "gemma": Family("<end_of_turn>", trims=str.strip),
    "gemma3": Family("<end_of_turn>", trims=str.strip),
    "gemma4": GEMMA4,
    "gemma4_v2": Family("<turn|>", trims=str.strip, call=GEMMA_CALL + "<turn|>"),
    "gemma4_v3": GEMMA4,
    "gemma4_v4": GEMMA4,
    "gemma4_v5": Family(**{**vars(GEMMA4), "thinks": GEMMA4_THINKS}),
    # It writes no end-of-turn text: the token that opens the next turn is what stops the model.
    "glm4moe": Family(
        "",
        inside_end="<|user|>",
        lead="\n<think></think>\n",
        trims=str.strip,
        call="\n<think></think>\n<tool_call>get_time\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>"
        "<|observation|>",
        thinks="\n<think>mm</think>\nso",
        writes_thinks="\n<think>mm</think>\nso",
        inside_writes_thinks="\n<think></think>\nso<|user|>",
    ),
    "gptoss": Family(
        "<|return|>",
        prefills=frozenset({"<|start|>assistant"}),
        inside_end="<|end|>",
        lead="<|channel|>final<|message|>",
        call=' to=functions.get_time<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>',
        thinks="<|channel|>analysis<|message|>mm<|end|><|start|>assistant<|channel|>final<|message|>so<|return|>",
    ),
    "idefics3": Family("<end_of_utterance>", lead=" "),
    "lfm2": Family(IM),
    "lfm2_2_5": LFM,
    "lfm2_2_5_v2": LFM,
    "lfm2_2_5_vl": LFM,
    "lfm2_v2": Family(IM, call=LFM_CALL),
    "llama3": Family("<|eot_id|>", trims=str.strip),
    "llama3_1": LLAMA,
    "llama3_2": LLAMA,
    "llava_next": Family("</s>", lead=" "),
    "muse_glimmer": Family(
        "<|eot|>",
        prefills=frozenset({"<|start|>assistant"}),
        lead=" to=user<|message|>",
        call=' to=get_time<|message|><atem:function_calls>\n<atem:invoke name="get_time">\n'
        '<atem:parameter name="city">Oslo</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eot|>',
        thinks=" to=self<|message|>mm<|eom|><|start|>assistant to=user<|message|>so<|eot|>",
        thinks_inside=" to=self<|message|>mm<|eom|><|start|>assistant to=user<|message|>so<|eot|>",
    ),
    "nemotron_3_5_lightning": NEMOTRON_TIGHT,
    "nemotron_3_nano": NEMOTRON,
    "nemotron_3_super": NEMOTRON,
    "nemotron_3_ultra": NEMOTRON_TIGHT,
    # After the whole conversation it writes eos_token, which ends the last turn too.
    "phi3": Family("<|end|>\n<|endoftext|>", inside_end="<|end|>"),
    "phi3_5": Family("<|end|>\n<|endoftext|>", inside_end="<|end|>"),
    "qwen2_5": Family(IM, call=JSON_CALL),
    "qwen2_5_vl": Family(IM),
    "qwen3": Family(
        IM,
        lead="<think>\n\n</think>\n\n",
        inside_lead="",
        call=JSON_CALL,
        thinks=f"<think>\nmm\n</think>\n\nso{IM}",
        writes_thinks=f"<think>\nmm\n</think>\n\nso{IM}",
        inside_writes_thinks=f"so{IM}",
    ),
    # The generation prompt holds an empty think block; a turn that thinks has another one, which is all target.
    "qwen3_5_nothink": Family(
        IM,
        trims=str.strip,
        call=XML_CALL + IM,
        thinks=f"<think>\nmm\n</think>\n\nso{IM}",
        writes_thinks=f"<think>\nmm\n</think>\n\nso{IM}",
        inside_writes_thinks=f"so{IM}",
        prefills=frozenset({"<think>\n\n</think>\n\n"}),
    ),
    "qwen3_5_think": QWEN3_5,
    "qwen3_6": QWEN3_5,
    # It keeps all thinking and reads it only where it is given apart.
    "qwen3_8": Family(
        **{
            **vars(QWEN3_5),
            "inside_lead": None,
            "thinks_inside": f"mm\n</think>\n\nso{IM}",
            "writes_thinks": None,
            "inside_writes_thinks": None,
        }
    ),
    "qwen3_instruct_2507": Family(IM, call=JSON_CALL),
    "qwen3_vl": Family(IM, call=JSON_CALL),
    "smolvlm": Family("<end_of_utterance>", lead=" "),
    # Those below are not trl's: see chat_templates/README.md. After its last answer Apertus writes no end.
    "apertus": Family(
        "",
        inside_end="<|assistant_end|>",
        json_arguments=True,
        call='<|tools_prefix|>[{"get_time": {"city": "Oslo"}}]<|tools_suffix|>',
    ),
    "apriel_1_6": Family(
        "",
        inside_end="\n<|end|>",
        # The line break before it is one token with that of the header.
        call='<tool_calls>[{"name": "get_time", "arguments": {"city": "Oslo"}}]</tool_calls>\n<|end|>',
        thinks="mm\n[BEGIN FINAL RESPONSE]\nso",
    ),
    # Its generation prompt holds the empty thinking that a turn with a call begins with.
    "command_a": Family(**{**vars(COMMAND), "call": COMMAND_CALL}),
    "command_r7b": COMMAND,
    "functionary": Family(
        "<|eot_id|>", json_arguments=True, call='<function=get_time>{"city": "Oslo"}</function><|eom_id|>'
    ),
    "glm4": Family("", lead="\n", inside_end="<|user|>", call='get_time\n{"city": "Oslo"}<|observation|>'),
    "hunyuan_hy3": Family("", inside_end="<｜hy_place▁holder▁no▁2｜>"),
}

ALTERNATE = ("roles must alternate", "takes no tool turns: roles must alternate")
NO_CALLS = ("does not show 'get_time'|shows 0 of 1 texts", "does not show tool calls")
NO_THINKING = ("drops the thinking of the last turn", "drops the thinking of the last turn")

REFUSED: dict[tuple[str, str], tuple[str, str]] = {
    ("gemma", "system"): ("System role not supported", "has no system role"),
    **{(name, "tool calls"): ALTERNATE for name in ("cohere", "cohere2", "gemma", "gemma3")},
    **{
        (name, "tool calls"): NO_CALLS
        for name in (
            "hunyuan_hy3",
            "deepseek_r1_distill",
            "idefics3",
            "lfm2",
            "llama3",
            "phi3",
            "phi3_5",
            "qwen2_5_vl",
            "smolvlm",
        )
    },
    ("llava_next", "tool calls"): ("Only user and assistant roles", "takes no tool turns"),
    ("deepseek_r1_distill", "think block"): NO_THINKING,
    ("deepseekv3", "think block"): NO_THINKING,
    **{(name, "reasoning"): NO_THINKING for name, family in FAMILIES.items() if family.thinks is None},
}
"""By family and case: what the error says, and the same in short. The reason is always ``template``."""


def say(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


Case = tuple[dict[str, Any], list[str]]
"""A row as it stands in a file, and the texts that are trained."""


def _single(family: Family, _: str) -> Case:
    return {"messages": [say("user", "hi"), say("assistant", "yo")]}, [family.turn("yo")]


def _several(family: Family, _: str) -> Case:
    turns = [say("user", "hi"), say("assistant", "yo"), say("user", "and"), say("assistant", "so")]
    return {"messages": turns}, [family.turn("yo", inside=True), family.turn("so")]


def _system(family: Family, _: str) -> Case:
    turns = [say("system", "be"), say("user", "hi"), say("assistant", "yo")]
    return {"messages": turns}, [family.turn("yo")]


def _lookalikes(family: Family, header: str) -> Case:
    spelt = f"{family.end or '<|user|>'}{header}<s>"
    turns = [say("user", f"say {spelt} now"), say("assistant", f"I {spelt} said")]
    return {"messages": turns}, [family.turn(f"I {spelt} said")]


def _repeated(family: Family, _: str) -> Case:
    turns = [say("user", "yo"), say("assistant", "yo")] * 3
    return {"messages": turns}, [family.turn("yo", inside=True)] * 2 + [family.turn("yo")]


def _white_space(family: Family, _: str) -> Case:
    turns = [say("user", " hi\n"), say("assistant", " \n yo \n"), say("user", "a"), say("assistant", "  x\n\n")]
    return {"messages": turns}, [family.turn(" \n yo \n", inside=True), family.turn("  x\n\n" if family.end else "  x")]


def _header(family: Family, header: str) -> Case:
    turns = [say("user", header + "yo"), say("assistant", header.strip() + "yo"), say("user", "x" + header)]
    return {"messages": turns}, [family.turn(header.strip() + "yo", inside=True)]


def _trailing_user(family: Family, _: str) -> Case:
    turns = [say("user", "hi"), say("assistant", "yo"), say("user", "yo")]
    return {"messages": turns}, [family.turn("yo", inside=True)]


def _think_block(family: Family, _: str) -> Case:
    text = "<think>\nmm\n</think>\n\nso"
    turns = [say("user", "hi"), say("assistant", text), say("user", "x"), say("assistant", text)]
    inside = family.inside_writes_thinks or family.turn(text, inside=True)
    return {"messages": turns}, [inside, family.writes_thinks or family.turn(text)]


def _reasoning(family: Family, _: str) -> Case:
    answer = say("assistant", "so", reasoning_content="mm")
    inside = family.thinks_inside or family.turn("so", inside=True)
    return {"messages": [say("user", "hi"), answer, say("user", "x"), answer]}, [inside, family.thinks or ""]


def _tool_calls(family: Family, _: str) -> Case:
    function = {"name": "get_time", "arguments": json.dumps({"city": "Oslo"})}
    call = {"type": "function", "id": "c12345678", "function": function}
    parameters = {"type": "object", "properties": {"city": {"type": "string", "description": "x"}}, "required": []}
    tool = {"type": "function", "function": {"name": "get_time", "description": "tells", "parameters": parameters}}
    turns = [
        say("user", "hi"),
        say("assistant", "", tool_calls=[call]),
        say("tool", "12:00", name="get_time", tool_call_id="c12345678"),
        say("assistant", "noon"),
    ]
    return {"messages": turns, "tools": [tool]}, [family.call or "", (family.after_call or "") + family.turn("noon")]


def _non_ascii(family: Family, _: str) -> Case:
    turns = [say("user", "né 👍🏽"), say("assistant", "👍🏽 日本 é"), say("user", "👍🏽"), say("assistant", "日本👍🏽")]
    return {"messages": turns}, [family.turn("👍🏽 日本 é", inside=True), family.turn("日本👍🏽")]


CASES: dict[str, Callable[[Family, str], Case]] = {
    "single turn": _single,
    "multi-turn": _several,
    "system": _system,
    "look-alikes": _lookalikes,
    "repeated": _repeated,
    "white space": _white_space,
    "header text": _header,
    "trailing user": _trailing_user,
    "think block": _think_block,
    "reasoning": _reasoning,
    "tool calls": _tool_calls,
    "non-ASCII": _non_ascii,
}

SPECIAL = re.compile(
    r"<\|[\w/\"]+\|?>|<[\w\"]+\|>|<｜[^｜<>]+｜>|<(?:start|end)_of_\w+>|\[gMASK\]|<sop>|</s>|<image>"
    r"|</?think>|</?tool_\w+>|</?arg_\w+>"
)
MARKUP = re.compile(r"</?(?:think|tool_\w+|arg_\w+)>|<\|?tool_call\|?>")
"""Added tokens that are no special ones in the models' own tokenizers."""


@cache
def base_tokenizer() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["the user said hello to the assistant\n\n and system"] * 4, trainer)
    return backend.to_str()


def template_text(name: str) -> str:
    text = TRL.get(name) or (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    return with_fixed_day(text)  # For the comparisons with transformers, which writes today's date.


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    text = template_text(name)
    backend = Tokenizer.from_str(base_tokenizer())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|endoftext|>")
    names = sorted(set(SPECIAL.findall(text)))
    tokenizer.add_tokens([AddedToken(n, special=not MARKUP.fullmatch(n), normalized=False) for n in names])
    tokenizer.chat_template = text
    return tokenizer


def render(name: str, conversation: Conversation, **options: Any) -> Any:
    """By transformers alone, in the forms that the template wants."""
    tokenizer = tokenizer_of(name)
    messages: list[dict[str, Any]] = [dict(message) for message in conversation.messages]
    for message in messages:
        if "['content'][0]" in tokenizer.chat_template:
            message["content"] = [{"type": "text", "text": message["content"]}]
        if "tool_calls" in message and FAMILIES[name.removesuffix("_training")].json_arguments:
            message["tool_calls"] = [_with_json_arguments(call) for call in message["tool_calls"]]
    return tokenizer.apply_chat_template(messages, tools=conversation.tools, **options)


def _with_json_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"])}}


def generation_prompt(name: str) -> str:
    prompt = Conversation([say("user", "sentinel")], num_prompt_messages=1)
    text = render(name, prompt, tokenize=False, add_generation_prompt=True).rpartition("sentinel")[2]
    return text.partition("<think>")[0]


def runs(ids: list[int], trained: list[bool], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Decoded runs of consecutive trained tokens."""
    found: list[list[int]] = []
    previous = False
    for index, is_trained in zip(ids, trained, strict=True):
        if is_trained and not previous:
            found.append([])
        if is_trained:
            found[-1].append(index)
        previous = is_trained
    return [tokenizer.decode(run) for run in found]


@cache
def encoded(name: str) -> dict[str, tuple[Conversation, list[str], Example | RowError]]:
    """For each case what the file's row is parsed to, what must be trained, and what comes out."""
    cases = {case: make(FAMILIES[name], generation_prompt(name)) for case, make in CASES.items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row, _ in cases.values()), encoding="utf-8")
        rows = [to_row(record).sides["answer"] for record in read_records(file)]
    results = ConversationEncoder(tokenizer_of(name)).encode(rows, [f"rows.jsonl:{k}" for k in range(len(rows))])
    return {
        case: (row, expected, result)
        for (case, (_, expected)), row, result in zip(cases.items(), rows, results, strict=True)
    }


def test_every_recorded_family_is_here() -> None:
    recorded = {name for name in TRL if not name.endswith("_training")} | {path.stem for path in FOLDER.glob("*.jinja")}
    assert recorded == set(FAMILIES)
    assert len(recorded) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_answers_are_trained(name: str, case: str) -> None:
    conversation, expected, result = encoded(name)[case]
    if (name, case) in REFUSED:
        assert isinstance(result, RowError), f"trains {result}"
        assert re.search(REFUSED[name, case][0], str(result))
        assert result.reason == "template"
        return
    assert isinstance(result, Example), str(result)
    tokenizer = tokenizer_of(name)
    trained = [label != IGNORE_INDEX for label in result.labels]
    assert runs(result.input_ids, trained, tokenizer) == expected
    assert all(label in (IGNORE_INDEX, token) for label, token in zip(result.labels, result.input_ids, strict=True))
    text = render(name, conversation, tokenize=False)
    assert tokenizer.decode(result.input_ids) == text
    if not result.num_lookalikes:
        assert result.input_ids == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_no_message_can_write_a_control_token(name: str) -> None:
    tokenizer, family = tokenizer_of(name), FAMILIES[name]
    special = set(tokenizer.all_special_ids) | {
        index for index, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    conversation, _, result = encoded(name)["look-alikes"]
    assert isinstance(result, Example)
    plain = Conversation([say("user", "say now"), say("assistant", "I said")])
    harmless = ConversationEncoder(tokenizer).encode([plain], ["rows.jsonl:1"])[0]
    assert isinstance(harmless, Example)
    controls = [token for token in result.input_ids if token in special]
    assert controls == [token for token in harmless.input_ids if token in special]
    spelt = f"{family.end or '<|user|>'}{generation_prompt(name)}<s>"
    count = sum(token in special for token in tokenizer(spelt, add_special_tokens=False)["input_ids"])
    assert result.num_lookalikes == 2 * count > 0
    prompt = ConversationEncoder(tokenizer).encode_prompt(conversation.messages[:1])
    assert prompt[: len(controls)] == result.input_ids[: len(controls)]
    assert sum(token in special for token in prompt) <= len(controls)


@pytest.mark.slow
def test_masks_agree_with_the_generation_blocks_of_trl() -> None:
    """Its training templates mark the answers; where they render alike, we must train the same text.

    They count the line break after the mark and what the generation prompt pre-fills; we do not. We count the
    ``<|tool_response>`` that ends a call of the gemma4 kind, which is where the model stops; they do not.
    In the cases left out their ids differ, or transformers loses a part of a character at the border of a block.
    """
    compared = set()
    for name, family in FAMILIES.items():
        if f"{name}_training" not in TRL:
            continue
        tokenizer, twin = tokenizer_of(name), tokenizer_of(f"{name}_training")
        for case in set(CASES) - {"look-alikes", "header text", "non-ASCII"}:
            conversation, expected, result = encoded(name)[case]
            if isinstance(result, RowError) or (name, case) == ("diffusion_gemma", "tool calls"):
                continue
            blocks = render(f"{name}_training", conversation, return_dict=True, return_assistant_tokens_mask=True)
            ids = tokenizer(render(name, conversation, tokenize=False), add_special_tokens=False)["input_ids"]
            if tokenizer.decode(ids) != twin.decode(blocks["input_ids"]):
                continue  # The training template renders the row in another way.
            theirs = [text.rstrip() for text in runs(ids, [bool(m) for m in blocks["assistant_masks"]], twin)]
            ours = [text.rstrip() for text in expected]
            assert len(ours) == len(theirs), (name, case)
            for mine, their in zip(ours, theirs, strict=True):
                assert their.endswith(mine), (name, case, mine, their)
                more = their.removesuffix(mine)
                assert not more.strip() or more in family.prefills, (name, case, mine, their)
            compared.add((name, case))
    assert len({name for name, _ in compared}) >= 20
    assert len(compared) >= 200


@pytest.mark.parametrize(
    ("name", "stop", "unstopped"),
    [
        ("command_a", "<|END_OF_TURN_TOKEN|>", 0),
        ("command_r7b", "<|END_OF_TURN_TOKEN|>", 0),
        ("glm4", "<|user|>", 1),
        ("glm4moe", "<|user|>", 1),
        ("apertus", "<|assistant_end|>", 1),
        ("apriel_1_6", "<|end|>", 1),
        ("hunyuan_hy3", "<｜hy_place▁holder▁no▁2｜>", 1),
    ],
)
def test_the_report_names_what_stops_a_turn(name: str, stop: str, unstopped: int) -> None:
    """These tokens end texts in an export; a last turn without one is counted, whatever it ends in."""
    turns = [say("user", "hi"), say("assistant", "yo."), say("user", "x"), say("assistant", "so.")]
    row = to_row(Record({"messages": turns}, "rows.jsonl:1"))
    example = ConversationEncoder(tokenizer_of(name)).encode([row.sides["answer"]], [row.origin])[0]
    assert isinstance(example, Example)
    builder = ReportBuilder("train", tokenizer_of(name), max_length=900, truncation="right")
    builder.keep(row, EncodedRow(row.kind, row.origin, {"answer": example}))
    report = builder.build()
    assert [end.token for end in report.turn_ends if end.stops] == [stop]
    assert report.turns_unstopped == unstopped


def table() -> str:
    """The page of the documentation, from what was written down above."""
    lines = [
        "# Chat templates",
        "",
        "Every row is rendered with the tokenizer's own chat template, and the assistant's tokens are found in two",
        "independent ways that must agree (`lit_ift/chat/spans.py`). This table says what comes out of rows in a file",
        "under the templates that the package trl ships and some that we wrote like those of other families (apertus",
        "and those after it). *ok*: exactly the assistant's texts with their end-of-turn",
        "text are trained. A number: the row is refused with an error that names the reason below.",
        "`tests/unit/chat/test_template_table.py` checks each cell and writes this page (LIT_IFT_WRITE_TABLES=1).",
        "",
        "| family | " + " | ".join(CASES) + " |",
        "| --- |" + " --- |" * len(CASES),
    ]
    notes = list(dict.fromkeys(short for _, short in REFUSED.values()))
    for name in FAMILIES:
        cells = [str(notes.index(REFUSED[name, case][1]) + 1) if (name, case) in REFUSED else "ok" for case in CASES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "The template", ""]
    lines += [f"{number}. {note}" for number, note in enumerate(notes, start=1)]
    lines += [
        "",
        "Rules",
        "",
        "- A turn is trained from the end of what the generation prompt writes through its end-of-turn text. White",
        "  space after that is not trained.",
        "- What the generation prompt pre-fills (`<think>`) is prompt, if the turn begins with it. A turn that lacks",
        "  the pre-filled part starts after what both have in common. A token that reaches from prompt into answer is",
        "  not trained and is counted.",
        "- Thinking that a template drops from earlier turns is no error: the model never sees it there. Thinking",
        "  that it drops from the last turn is one. The report counts rows that lose thinking.",
        "- Where a template writes no end-of-turn text after the last turn (GLM-4, Apertus, Apriel-1.6, Hunyuan),",
        "  the token after a turn in the middle is trained: the one that ends it, or the one that opens the next turn.",
        "  After a last turn there is none. If most rows have one answer, copy the template to a file, write the token",
        "  behind the last answer there, and set `data.chat_template` to the file.",
        "- A generation prompt that a template writes unasked after the last answer (Command-R7B) is not trained.",
        f"- A template that writes today's date (`strftime_now`) writes {DAY:%Y-%m-%d} instead, in training and when",
        "  the model answers here, so that rows are the same on every day of a run. For another date, write it into a",
        "  copy of the template. Where a template asks for it in another way, the day is in the key of the cache.",
        "- Arguments of tool calls are JSON objects, or such objects in a string; a template that writes strings",
        "  (DeepSeek-V3, functionary, Apertus) gets strings.",
        "- Special tokens, and other added tokens that delimit turns, are control tokens: in a message they are",
        "  encoded as text. Added tokens with a closing twin (`<think>`, `<tool_call>`) stay tokens unless they are",
        "  special.",
        "",
    ]
    return "\n".join(lines)


def test_the_page_is_up_to_date() -> None:
    if os.environ.get("LIT_IFT_WRITE_TABLES") == "1":
        PAGE.write_text(table(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == table(), "run this test with LIT_IFT_WRITE_TABLES=1"
