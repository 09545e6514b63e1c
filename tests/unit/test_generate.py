"""Answers that begin with a prior."""

import re
from typing import Any

import pytest
import torch
from tiny import tiny_batch, tiny_model, tiny_tokenizer

from lit_ift.errors import UserError
from lit_ift.modules import SFTModule
from lit_ift.modules.generate import check_generation, generate_answers

PROMPTS = [[10, 11, 12, 13, 14], [20, 21], [30]]
PRIOR = "Sure: "


def test_prior_equals_generating_by_hand() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prior = tokenizer.encode(PRIOR, add_special_tokens=False)
    assert len(prior) == 6
    found = dict(generate_answers(model, tokenizer, PROMPTS, max_new_tokens=5, batch_size=2, prior=PRIOR))
    plain = dict(generate_answers(model, tokenizer, PROMPTS, max_new_tokens=5))
    for i, prompt in enumerate(PROMPTS):
        ids = [*prompt, *prior]
        for _ in range(5):
            best = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(best)
            if best == tokenizer.eos_token_id:
                break
        assert found[i] == tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
        assert found[i].startswith(PRIOR)
        assert found[i] != PRIOR + plain[i]


def test_prior_has_no_special_tokens_of_the_tokenizer() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    expected = dict(generate_answers(model, tokenizer, PROMPTS, max_new_tokens=4, prior=PRIOR))
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    assert tokenizer.encode("a")[0] == 1
    assert dict(generate_answers(model, tokenizer, PROMPTS, max_new_tokens=4, prior=PRIOR)) == expected


def test_prediction_takes_the_prior() -> None:
    module = SFTModule(tiny_model(), generation={"max_new_tokens": 3, "prior": PRIOR})
    module.tokenizer = tiny_tokenizer()
    batch = tiny_batch(3)
    rows = module.predict_step(batch, 0)
    prompts = [
        ids[: int((labels != -100).int().argmax())].tolist() for ids, labels in zip(*_columns(batch), strict=True)
    ]
    answers = dict(generate_answers(module.model, module.tokenizer, prompts, max_new_tokens=3, prior=PRIOR))
    assert [row["answer"] for row in rows] == [answers[i] for i in range(3)]
    # What the prompt is and what was expected stay as they are.
    module.generation = {"max_new_tokens": 3}
    for row, plain in zip(rows, module.predict_step(batch, 0), strict=True):
        assert row["answer"].startswith(PRIOR)
        assert {**row, "answer": ""} == {**plain, "answer": ""}


def _columns(batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    return batch["input_ids"], batch["labels"]


@pytest.mark.parametrize(("prior", "message"), [("", "prior='' has no tokens"), (1, "prior=1 is not text")])
def test_prior_must_say_something(prior: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(generate_answers(tiny_model(), tiny_tokenizer(), PROMPTS, prior=prior))


def test_unknown_option() -> None:
    with pytest.raises(ValueError, match="priour"):
        list(generate_answers(tiny_model(), tiny_tokenizer(), PROMPTS, priour="Sure"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_token": 3}, "'max_new_token'. Did you mean 'max_new_tokens'?"),
        ({"temperatur": 0.5, "do_sample": True}, "Did you mean 'temperature'?"),
        ({"temperature": 0.5, "top_p": 0.9}, "temperature, top_p has no effect without do_sample: true"),
    ],
)
def test_options_without_effect_are_refused_before_there_is_a_model(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check_generation(options)


def test_options_of_transformers_are_let_through() -> None:
    check_generation({"do_sample": True, "temperature": 0.5, "min_p": 0.1, "batch_size": 2, "prior": "Well"})
    check_generation({"num_beams": 2, "length_penalty": 0.5, "stop_strings": ["."], "codebook_bias": 1})
