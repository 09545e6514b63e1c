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


def by_hand(model: Any, prompt: list[int], steps: int) -> str:
    """The likeliest token each time."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tiny_tokenizer().eos_token_id:
            break
    return str(tiny_tokenizer().decode(ids[len(prompt) :], skip_special_tokens=True))


OF_THE_MODEL: dict[str, Any] = {
    **{"repetition_penalty": 5.0, "num_beams": 3, "no_repeat_ngram_size": 1, "min_new_tokens": 6},
    **{"suppress_tokens": list(range(60, 250)), "begin_suppress_tokens": list(range(60, 250))},
    **{"bad_words_ids": [[i] for i in range(60, 250)], "forced_eos_token_id": 2, "length_penalty": 3.0},
    **{"exponential_decay_length_penalty": (1, 5.0), "sequence_bias": [[[70], 50.0]], "guidance_scale": 3.0},
    **{"do_sample": True, "temperature": 5.0, "num_return_sequences": 2, "return_dict_in_generate": True},
    **{"penalty_alpha": 0.6, "top_k": 4, "prompt_lookup_num_tokens": 2, "min_length": 12, "renormalize_logits": True},
}


@pytest.mark.parametrize(
    "names", [*([name] for name in OF_THE_MODEL if name != "num_return_sequences"), [*OF_THE_MODEL]], ids=", ".join
)
def test_greedy_is_greedy(names: list[str]) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    for name in names:
        setattr(model.generation_config, name, OF_THE_MODEL[name])
    found = dict(generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8))
    assert found == {i: by_hand(model, prompt, 8) for i, prompt in enumerate(PROMPTS)}


def test_what_ends_an_answer_is_the_models() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    whole = by_hand(model, PROMPTS[0], 8)
    third = tokenizer.encode(whole)[2]
    model.generation_config.eos_token_id = [2, third]
    (answer,) = dict(generate_answers(model, tokenizer, PROMPTS[:1], max_new_tokens=8)).values()
    assert tokenizer.encode(answer)[-1] == third
    assert len(tokenizer.encode(answer)) <= 3
    model.generation_config.eos_token_id = 2
    model.generation_config.stop_strings = [tokenizer.decode([third])]
    assert dict(generate_answers(model, tokenizer, PROMPTS[:1], max_new_tokens=8)) == {0: answer}


def test_sampling_takes_the_models_own_options_and_the_given_ones() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.generation_config.top_k = 1  # Which leaves one token to draw.
    drawn = dict(generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8, do_sample=True))
    assert drawn == {i: by_hand(model, prompt, 8) for i, prompt in enumerate(PROMPTS)}
    model.generation_config.top_k = None
    torch.manual_seed(0)
    drawn = dict(generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8, do_sample=True, temperature=20.0))
    assert drawn != {i: by_hand(model, prompt, 8) for i, prompt in enumerate(PROMPTS)}
    penalised = dict(generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8, repetition_penalty=5.0))
    assert penalised != {i: by_hand(model, prompt, 8) for i, prompt in enumerate(PROMPTS)}


def test_unknown_option() -> None:
    with pytest.raises(ValueError, match="priour"):
        list(generate_answers(tiny_model(), tiny_tokenizer(), PROMPTS, priour="Sure"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_token": 3}, "'max_new_token'. Did you mean 'max_new_tokens'?"),
        ({"temperatur": 0.5, "do_sample": True}, "Did you mean 'temperature'?"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 asks for more than one answer"),
        ({"temperature": 0.5, "top_p": 0.9}, "temperature, top_p has no effect without do_sample: true"),
    ],
)
def test_options_without_effect_are_refused_before_there_is_a_model(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check_generation(options)


def test_options_of_transformers_are_let_through() -> None:
    check_generation({"do_sample": True, "temperature": 0.5, "min_p": 0.1, "batch_size": 2, "prior": "Well"})
    check_generation({"num_beams": 2, "length_penalty": 0.5, "stop_strings": ["."], "codebook_bias": 1})
