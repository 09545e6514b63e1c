"""Numbers of tokens against a literal computation, one row at a time, in float64."""

from typing import Any

import pytest
import torch
from tiny import tiny_batch, tiny_model, tiny_tokenizer

from lit_ift.chat.example import Example
from lit_ift.data.rows import EncodedRow
from lit_ift.errors import UserError
from lit_ift.generation.find import ModelPlace
from lit_ift.generation.opened import OpenedModel
from lit_ift.models.lora import add_lora
from lit_ift.modules import CausalLMModule, IFTModule, PreferenceModule, SFTModule
from lit_ift.run_report.objective import Objective
from lit_ift.run_report.scores import answers_of, read, read_rows

LAM, GAMMA = 0.3, 0.9
IFT = {"class_path": "lit_ift.IFTModule", "init_args": {"model": "x", "lam": LAM, "gamma": GAMMA, "lora": {"r": 2}}}


def unpadded(batch: dict[str, Any]) -> list[tuple[Any, list[int]]]:
    """Ids of each row, and the places of its trained tokens."""
    lengths = batch["attention_mask"].sum(-1)
    rows = zip(batch["input_ids"], batch["labels"], lengths, strict=True)
    return [(ids[:n], [t for t in range(n) if labels[t] != -100]) for ids, labels, n in rows]


def literal(model: Any, ids: torch.Tensor, places: list[int]) -> dict[int, tuple[float, int, float]]:
    """Log-probability, likeliest token and weight of each trained token of a row."""
    logps = model(ids[None]).logits[0].log_softmax(-1)
    embed = model.get_input_embeddings()
    mixed = embed(ids).clone()
    for t in places:
        mixed[t] = (1 - LAM) * embed(ids[t]) + LAM * embed(logps[t - 1].argmax())
    fused = model(inputs_embeds=mixed[None]).logits[0].log_softmax(-1)
    item = {t: -float(fused[t - 1, ids[t]]) / len(places) for t in places}
    c = {t: sum(GAMMA ** (i - t) * item[i] for i in places if i >= t) for t in places}
    return {
        t: (float(logps[t - 1, ids[t]]), int(logps[t - 1].argmax()), c[t] * len(places) / sum(c.values()))
        for t in places
    }


@torch.no_grad()
def test_ift_reads_a_padded_batch_as_rows_by_themselves() -> None:
    model, batch = tiny_model(), tiny_batch(4)
    answers = answers_of(read(Objective.of(IFT).around(model), batch))
    for answer, (ids, places) in zip(answers, unpadded(batch), strict=True):
        wanted = literal(model, ids, places)
        assert list(answer) == places
        for place, (logp, prediction, weight) in wanted.items():
            assert answer[place].logp == pytest.approx(logp, abs=1e-12)
            assert answer[place].prediction == prediction
            assert answer[place].weight == pytest.approx(weight, abs=1e-12)
        assert sum(token.weight for token in answer.values()) == pytest.approx(len(places), abs=1e-12)


def row(kind: Any, **sides: str) -> EncodedRow:
    tokenizer = tiny_tokenizer()
    examples = {}
    for name, text in sides.items():
        ids = tokenizer.encode(f"ask {text}")
        examples[name] = Example(ids, [-100] * 4 + ids[4:], "row")
    return EncodedRow(kind, "row", examples)


ROWS = [
    row("instruction", answer="short"),
    row("instruction", answer="a longer one"),
    row("preference", chosen="good", rejected="not so good"),
    row("instruction", answer="last"),
]


def found(model: Any, base: str | None = None) -> OpenedModel:
    return OpenedModel(ModelPlace("model", "here"), model.eval(), tiny_tokenizer(), base)


def check_plain(model: Any, answers: list[Any], of: EncodedRow) -> None:
    for answer, example in zip(answers, of.sides.values(), strict=True):
        logps = model(torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
        assert list(answer) == list(range(4, len(example.input_ids)))
        for place, token in answer.items():
            assert token.logp == pytest.approx(float(logps[place - 1, example.input_ids[place]]), abs=1e-12)
            assert token.prediction == int(logps[place - 1].argmax())


@torch.no_grad()
def test_rows_of_all_kinds_are_read_in_their_order() -> None:
    model = tiny_model()
    read_ = read_rows(found(model), ROWS, Objective.of(IFT), compares=False, batch_size=2)
    assert [r.row for r in read_] == ROWS
    for r in read_:
        check_plain(model, r.answers, r.row)
        has_weights = [token.weight is not None for answer in r.answers for token in answer.values()]
        assert set(has_weights) == {r.row.kind == "instruction"}
        assert r.before is None


@torch.no_grad()
def test_the_base_of_a_lora_model_is_the_model_without_its_adapter() -> None:
    adapted = add_lora(tiny_model(), {"r": 2})
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.normal_()
    first = read_rows(found(adapted), ROWS, Objective(), compares=True, batch_size=4)[1]
    check_plain(tiny_model(), first.before, ROWS[1])
    check_plain(adapted, first.answers, ROWS[1])
    assert first.before[0][4].logp != first.answers[0][4].logp


@torch.no_grad()
def test_the_base_of_a_whole_model_is_the_one_that_it_was_trained_from(tmp_path: Any) -> None:
    tiny_model(seed=1).save_pretrained(tmp_path)
    first = read_rows(found(tiny_model(), str(tmp_path)), ROWS[:1], Objective(), compares=True, batch_size=4)[0]
    check_plain(tiny_model(seed=1), first.before, ROWS[0])
    with pytest.raises(UserError, match="does not say which model"):
        read_rows(found(tiny_model()), ROWS, Objective(), compares=True, batch_size=4)


def test_the_objective_of_a_configuration() -> None:
    assert Objective.of(IFT) == Objective(IFTModule, {"lam": LAM, "gamma": GAMMA})
    assert Objective.of(None) == Objective.of({"class_path": "PreferenceModule", "init_args": {"loss": "dpo"}})
    of_input = {"lam": 0.1, "reuse_predictions": "initial"}
    sft = {"class_path": "lit_ift.modules.SFTModule", "init_args": {"input": "temporal_residual"}}
    sft["init_args"]["input_options"] = of_input
    assert Objective.of(sft).options == {"input": "temporal_residual", "input_options": {"lam": 0.1}}
    parts = {
        "preference": {"objective": "PreferenceModule", "options": {}},
        "instruction": {"objective": "IFTModule", "options": {"gamma": 0.5}},
    }
    mixed = {"class_path": "MixedModule", "init_args": {"parts": parts}}
    assert Objective.of(mixed) == Objective(IFTModule, {"gamma": 0.5})
    assert Objective.of({"class_path": f"{__name__}.Own", "init_args": {"mine": 2, "lam": 0.4}}) == Objective(
        Own, {"mine": 2, "lam": 0.4}
    )
    with pytest.raises(UserError, match="cannot be imported"):
        Objective.of({"class_path": "nowhere.Module"})
    with pytest.raises(UserError, match="cannot be used: lam"):
        Objective.of({**IFT, "init_args": {"lam": 2}}).around(tiny_model())
    assert type(Objective().around(tiny_model())) is CausalLMModule
    assert not issubclass(PreferenceModule, SFTModule)


class Own(IFTModule):
    def __init__(self, model: Any, *, mine: int = 1, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
