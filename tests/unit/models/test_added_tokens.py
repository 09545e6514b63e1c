"""Tokens that a template needs: in the tokenizer, with rows in the model, or refused with an alternative."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rowfiles import jsonl, write
from tiny import VOCABULARY_SIZE, tiny_base_tokenizer, tiny_model

from lit_ift.chat.templates import plain_marks, resolve_chat_template
from lit_ift.data import InstructionDataModule
from lit_ift.errors import UserError
from lit_ift.models.added_tokens import add_tokens, give_rows
from lit_ift.modules import IFTModule, PreferenceModule, SFTModule

MARKS = ["<|im_start|>", "<|im_end|>"]
NEW = [VOCABULARY_SIZE, VOCABULARY_SIZE + 1]


@pytest.fixture
def base_folder(tmp_path: Path) -> str:
    folder = tmp_path / "base"
    tiny_model("llama", dtype=torch.float32).save_pretrained(folder)
    tiny_base_tokenizer().save_pretrained(folder)
    return str(folder)


def test_tokens_are_added_once_and_never_split() -> None:
    tokenizer = tiny_base_tokenizer()
    assert add_tokens(tokenizer, [*MARKS, "</s>"]) == NEW
    assert tokenizer.encode("a<|im_end|>b")[1] == NEW[1]
    assert add_tokens(tokenizer, MARKS) == []
    assert len(tokenizer) == VOCABULARY_SIZE + 2


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", [VOCABULARY_SIZE, VOCABULARY_SIZE + 50])
def test_new_rows_are_the_mean_of_the_rows_before(tied: bool, size: int) -> None:
    model = tiny_model("llama", tied=tied, dtype=torch.float32, vocab_size=size)
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    before = [table.detach().clone()[:VOCABULARY_SIZE] for table in tables]
    give_rows(model, NEW)
    after = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[:VOCABULARY_SIZE], old)
        assert torch.equal(new[NEW], old.mean(dim=0).expand(2, -1))
    assert (after[0] is after[1]) is tied
    assert model.config.vocab_size == len(after[0]) == max(size, VOCABULARY_SIZE + 2)


def test_the_bias_of_a_head_is_the_mean_too() -> None:
    model: Any = tiny_model("phi", dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.arange(VOCABULARY_SIZE))
    give_rows(model, NEW)
    assert model.lm_head.bias[NEW].tolist() == [(VOCABULARY_SIZE - 1) / 2] * 2


def test_marks_that_are_plain_text_are_found() -> None:
    tokenizer = tiny_base_tokenizer()
    tokenizer.chat_template = resolve_chat_template("chatml")
    assert sorted(plain_marks(tokenizer)) == sorted(MARKS)
    tokenizer.chat_template = resolve_chat_template("zephyr")  # Its headers are plain, and meant to be.
    assert plain_marks(tokenizer) == []
    tokenizer.chat_template = (
        "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}"
    )
    assert plain_marks(tokenizer) == []


def test_a_chosen_template_whose_end_is_plain_text_is_refused(tmp_path: Path, base_folder: str) -> None:
    path = write(tmp_path / "rows.jsonl", jsonl([{"prompt": "a", "completion": "b"}] * 4))
    remedy = r'Set model.added_tokens to \["<\|im_end\|>", "<\|im_start\|>"\], or use data.chat_template=zephyr'
    with pytest.raises(UserError, match=rf"no token for, so it would be several plain ones. {remedy}"):
        InstructionDataModule(str(path), tokenizer=base_folder, chat_template="chatml").setup("fit")
    module = InstructionDataModule(str(path), tokenizer=base_folder, chat_template="zephyr")
    module.setup("fit")
    assert module.reports["train"].rows_with_stop == 4


@pytest.mark.parametrize("tokens", ["<a>", ["a b"], [""], [3], ["<a>", "<a>"]])
def test_what_is_no_list_of_tokens_is_refused(tokens: Any, base_folder: str) -> None:
    with pytest.raises((UserError, ValueError), match=r"added_tokens=.* must be a list"):
        SFTModule(base_folder, added_tokens=tokens)


def test_lora_would_not_train_the_rows(base_folder: str) -> None:
    with pytest.raises(UserError, match=r"added_tokens has no use with model.lora.*data.chat_template=zephyr"):
        SFTModule(base_folder, added_tokens=MARKS, lora={"r": 2})


def test_a_frozen_embedding_would_not_learn_the_rows(tmp_path: Path, base_folder: str) -> None:
    import lightning as L

    path = write(tmp_path / "rows.jsonl", jsonl([{"prompt": "a", "completion": "b"}] * 4))
    data = InstructionDataModule(str(path), chat_template="chatml")
    module = IFTModule(base_folder, added_tokens=MARKS)
    assert module.detach_input_embeddings
    with pytest.raises(UserError, match=r"no use with model.detach_input_embeddings"):
        L.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False).fit(module, data)


def test_a_ready_model_needs_its_tokenizer(base_folder: str) -> None:
    with pytest.raises(UserError, match=r"needs the tokenizer of the ready model: set model.tokenizer"):
        SFTModule(tiny_model("llama"), added_tokens=MARKS)
    module = SFTModule(tiny_model("llama"), tokenizer=base_folder, added_tokens=MARKS)
    assert module.model.get_input_embeddings().weight.shape[0] == VOCABULARY_SIZE + 2


def test_a_second_model_for_the_reference_has_the_rows_too(base_folder: str) -> None:
    module = PreferenceModule(base_folder, added_tokens=MARKS, reference="model")
    module.configure_model()
    second = module.reference._second
    assert second is not None
    assert torch.equal(second.model.get_input_embeddings().weight, module.model.get_input_embeddings().weight)
