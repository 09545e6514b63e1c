"""Talking: history, streaming, the base model beside it, and what fits into the context."""

import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import tiny_base_tokenizer, tiny_model, tiny_tokenizer

from lit_ift.errors import UserError
from lit_ift.generation.engine import GenerationOptions
from lit_ift.generation.find import ModelPlace
from lit_ift.generation.opened import OpenedModel
from lit_ift.generation.talk import Talk
from lit_ift.generation.terminal import ChatTerminal
from lit_ift.generation.transformers_engine import TransformersEngine
from lit_ift.models.lora import add_lora

SHORT = GenerationOptions(max_new_tokens=6)


def model_of(seed: int = 0, base: str | None = None) -> OpenedModel:
    return OpenedModel(ModelPlace("model", "tiny"), tiny_model(seed=seed).eval(), tiny_tokenizer(), base)


def by_hand(model: Any, messages: list[dict[str, str]], steps: int) -> str:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**ids, max_new_tokens=steps, do_sample=False, pad_token_id=2)
    return tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_answers_are_those_of_generate_and_come_in_pieces() -> None:
    opened = model_of()
    talk = Talk(opened, SHORT, system="Be short.")
    pieces: list[str] = []
    reply = talk.ask("Hello there", pieces.append)
    history = [{"role": "system", "content": "Be short."}, user("Hello there")]
    assert reply.text == by_hand(opened.model, history, 6)
    assert "".join(pieces) == reply.text
    assert reply.is_cut
    again = talk.ask("And?", pieces.append)
    history += [{"role": "assistant", "content": reply.text}, user("And?")]
    assert again.text == by_hand(opened.model, history, 6)
    talk.reset()
    talk.set_system(None)
    assert talk.ask("Hello there", pieces.append).text == by_hand(opened.model, [user("Hello there")], 6)


def test_an_answer_that_ends_by_itself_is_not_cut() -> None:
    opened = model_of()
    first = Talk(opened, SHORT).ask("Hello", lambda _: None)
    ids = tiny_tokenizer().apply_chat_template([user("Hello")], add_generation_prompt=True, return_dict=True)
    best = int(opened.model(input_ids=torch.tensor([ids["input_ids"]])).logits[0, -1].argmax())
    opened.model.generation_config.eos_token_id = [best]
    assert first.is_cut
    assert not Talk(opened, GenerationOptions(max_new_tokens=1)).ask("Hello", lambda _: None).is_cut


def test_sampled_answers_are_seeded() -> None:
    opened = model_of()
    options = GenerationOptions(max_new_tokens=8, temperature=2.0, seed=1)
    talk = Talk(opened, options)
    first = talk.ask("Hello", lambda _: None).text
    assert Talk(opened, options).ask("Hello", lambda _: None).text == first
    other = GenerationOptions(max_new_tokens=8, temperature=2.0, seed=2)
    assert Talk(opened, other).ask("Hello", lambda _: None).text != first
    ids = [[5, 6, 7], [8, 9]]
    several = GenerationOptions(max_new_tokens=4, temperature=2.0, num_answers=3, seed=1, batch_size=2)
    answers = dict(TransformersEngine(opened.model, opened.tokenizer).generate(ids, several))
    assert answers == dict(TransformersEngine(opened.model, opened.tokenizer).generate(ids, several))
    assert all(len(set(texts)) == 3 for texts in answers.values())


def test_compare_switches_the_adapter_off() -> None:
    opened = model_of()
    before = by_hand(opened.model, [user("Hello")], 6)
    opened.model = add_lora(opened.model, {"r": 2}).eval()
    with torch.no_grad():
        for name, parameter in opened.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 2.0, generator=torch.Generator().manual_seed(0))
    talk = Talk(opened, SHORT)
    reply = talk.ask("Hello", lambda _: None)
    assert reply.text != before
    assert talk.compare() == ("Hello", before, reply.text)
    kept = list(talk.messages)
    question, base, tuned = talk.compare("And?")
    assert (question, talk.messages) == ("And?", kept)
    assert tuned == talk.ask("And?", lambda _: None).text
    assert base != tuned


def test_compare_loads_the_base_of_a_whole_model(tmp_path: Path) -> None:
    base = tiny_model(seed=7, dtype=torch.float64)
    base.save_pretrained(tmp_path / "base")
    talk = Talk(model_of(base=str(tmp_path / "base")), SHORT)
    _, before, after = talk.compare("Hello")
    assert before == by_hand(base.eval(), [user("Hello")], 6) != after
    with pytest.raises(UserError, match=r"does not say which model it was trained from.*--model"):
        Talk(model_of(), SHORT).compare("Hello")
    with pytest.raises(UserError, match="Nothing was asked yet"):
        talk.compare()


def test_a_history_that_is_too_long_loses_its_oldest_questions() -> None:
    opened = model_of()  # It reads 256 tokens.
    talk = Talk(opened, SHORT)
    for text in ("a" * 60, "b" * 60):
        assert talk.ask(text, lambda _: None).forgotten == 0
    second = list(talk.messages[2:])
    reply = talk.ask("c" * 60, lambda _: None)
    assert reply.forgotten == 2
    assert talk.messages[:2] == second
    assert reply.text == by_hand(opened.model, talk.messages[:-1], 6)
    kept = list(talk.messages)
    with pytest.raises(UserError, match=r"question is too long: the prompt has \d+ tokens, and 250 leave room"):
        talk.ask("d" * 300, lambda _: None)
    assert talk.messages == kept
    with pytest.raises(UserError, match="max_new_tokens=256 leaves no room"):
        Talk(opened, GenerationOptions(max_new_tokens=256))


def test_no_chat_template() -> None:
    opened = model_of()
    opened.tokenizer = tiny_base_tokenizer()
    with pytest.raises(UserError, match=r"has no chat template: it is that of a base model.*--chat_template chatml"):
        Talk(opened, SHORT)


def test_a_template_without_system_message_leaves_the_talk_as_it_was() -> None:
    opened = model_of()
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    opened.tokenizer.chat_template = refusing + opened.tokenizer.chat_template
    talk = Talk(opened, SHORT)
    with pytest.raises(UserError, match="no system"):
        talk.set_system("Be short.")
    assert talk.system is None
    assert talk.ask("Hello", lambda _: None).text


def lines(*texts: str) -> Callable[[str], str]:
    """Input of these lines, then the end."""
    rest = iter(texts)

    def ask(prompt: str) -> str:
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    return ask


def shown(opened: OpenedModel, *texts: str) -> tuple[str, Talk]:
    output = io.StringIO()
    talk = Talk(opened, SHORT)
    ChatTerminal(talk, ask=lines(*texts), console=Console(file=output, width=100)).run()
    return output.getvalue(), talk


def test_a_session(tmp_path: Path) -> None:
    tiny_model(seed=7).save_pretrained(tmp_path / "base")
    opened = model_of(base=str(tmp_path / "base"))
    text, talk = shown(
        opened, "", "/system Be short.", "Hello", '"""one', 'two"""', "/compare", "/resset", "/help", "/quit", "never"
    )
    assert [message["content"] for message in talk.messages[::2]] == ["Hello", "one\ntwo"]
    assert talk.system == "Be short."
    for wanted in (
        "System message set",
        talk.messages[1]["content"].splitlines()[0],
        "Cut at 6 tokens",
        f"base: {tmp_path}"[:20],
        "trained: tiny",
        "no command /resset. Did you mean '/reset'?",
        "/compare [QUESTION]",
    ):
        assert wanted in text
    text, talk = shown(opened, "Hello", "/reset", "/compare", " /etc", "d" * 300)
    assert "forgotten" in text
    assert "Nothing was asked yet" in text
    assert "question is too long" in text
    assert [message["content"] for message in talk.messages[::2]] == ["/etc"]


def test_ctrl_c_keeps_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = model_of()
    talk = Talk(opened, SHORT)
    written: list[str] = []

    def write(text: str) -> None:
        written.append(text)
        if sum(map(len, written)) >= 1:
            raise KeyboardInterrupt

    reply = talk.ask("Hello", write)
    assert reply.is_stopped
    assert reply.text == "".join(written) == talk.messages[-1]["content"]


def test_a_models_words_steer_no_terminal() -> None:
    opened = model_of()
    terminal = ChatTerminal(Talk(opened, SHORT), console=Console(file=(output := io.StringIO()), width=100))
    terminal._write("a\x1b[2Jb [bold]c")
    assert output.getvalue() == "a\\x1b[2Jb [bold]c\n"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="a pseudoterminal")
def test_on_a_pseudoterminal(model_folder: Path) -> None:
    import pty
    import sys

    pid, master = pty.fork()
    if pid == 0:
        words = ["chat", str(model_folder), "--max_new_tokens", "4", "--device", "cpu"]
        os.execv(sys.executable, [sys.executable, "-m", "lit_ift", *words])
    output = b""
    sent = False
    try:
        while chunk := os.read(master, 4096):
            output += chunk
            if not sent and output.rstrip().endswith(b">"):
                os.write(master, b"Hello\n/quit\n")
                sent = True
    except OSError:  # How Linux tells the end of a pseudoterminal.
        pass
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, output
    assert re.search(rb"Cut at 4 tokens", output), output
