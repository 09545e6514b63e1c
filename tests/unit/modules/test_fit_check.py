"""Ids beyond the embedding, rows beyond the positions and weights that are no numbers are told before training."""

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from rowfiles import jsonl, write
from tiny import tiny_batch, tiny_model, tiny_tokenizer
from torch.utils.data import DataLoader

from lit_ift.data import InstructionDataModule
from lit_ift.errors import UserError
from lit_ift.models.limits import damage_of, limits_of
from lit_ift.models.load import load_model
from lit_ift.modules import SFTModule


def trainer(tmp_path: Path) -> L.Trainer:
    return L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(tmp_path: Path, model: Any, *, fn: str = "fit", answer: str = "b", tokenizer: Any = None, **data: Any) -> None:
    path = write(tmp_path / "rows.jsonl", jsonl([{"prompt": "a", "completion": text} for text in ("b", answer)]))
    split = "predict" if fn == "predict" else "train"
    module = InstructionDataModule(**{split: str(path)}, tokenizer=tokenizer or tiny_tokenizer(), batch_size=2, **data)
    getattr(trainer(tmp_path), fn)(SFTModule(model), module)


def small(name: str, **changes: Any) -> Any:
    return tiny_model(name, dtype=torch.float32, **changes)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("llama", {}, (259, 256, False)),
        ("gpt2", {}, (259, 256, True)),
        ("gpt2", {"n_positions": 16}, (259, 16, True)),
    ],
)
def test_limits(name: str, changes: dict[str, Any], expected: tuple[int, int, bool]) -> None:
    assert limits_of(small(name, **changes)) == expected


def test_other_tables_of_positions_are_found() -> None:
    from transformers import AutoModelForCausalLM, BloomConfig, GPTJConfig, OPTConfig

    opt = OPTConfig(
        vocab_size=9,
        hidden_size=8,
        num_hidden_layers=1,
        ffn_dim=8,
        num_attention_heads=1,
        max_position_embeddings=7,
        word_embed_proj_dim=8,
    )
    gptj = GPTJConfig(vocab_size=9, n_embd=8, n_layer=1, n_head=1, n_positions=7, rotary_dim=4)
    bloom = BloomConfig(vocab_size=9, hidden_size=8, n_layer=1, n_head=1)
    found = [limits_of(AutoModelForCausalLM.from_config(config)) for config in (opt, gptj, bloom)]
    assert [(limits.positions, limits.has_table) for limits in found] == [(7, True), (7, True), (None, False)]


def test_an_id_beyond_the_embedding_stops_before_training(tmp_path: Path) -> None:
    model = small("llama", vocab_size=240)
    with pytest.raises(UserError, match=r"data.train: .*rows.jsonl:2 has the token .* of id 258. .* has 240 rows"):
        fit(tmp_path, model, answer="í")


def test_an_id_that_no_row_has_does_not_matter(tmp_path: Path) -> None:
    fit(tmp_path, small("llama", vocab_size=240))


def test_a_row_beyond_learned_positions_stops_before_training(tmp_path: Path) -> None:
    model = small("gpt2", n_positions=64)
    with pytest.raises(
        UserError,
        match=r"rows.jsonl:2 has \d+ tokens, but the model has positions for 64 .* Lower data.max_length to 64",
    ):
        fit(tmp_path, model, answer="b" * 60)
    fit(tmp_path, model, answer="b" * 60, max_length=64)


def test_padding_has_positions_too(tmp_path: Path) -> None:
    model = small("gpt2", n_positions=64)
    with pytest.raises(UserError, match=r"padded to 100"):
        fit(tmp_path, model, pad_to_multiple_of=100)


def test_answers_that_predict_adds_have_positions_too(tmp_path: Path) -> None:
    model = small("gpt2", n_positions=128)
    with pytest.raises(UserError, match=r"up to 128 are added to them"):
        fit(tmp_path, model, fn="predict")


def test_rows_beyond_rotary_positions_are_a_warning(tmp_path: Path) -> None:
    model = small("llama", max_position_embeddings=64)
    with pytest.warns(UserWarning, match=r"rows.jsonl:2 has \d+ tokens, more than the 64 that the model was made for"):
        fit(tmp_path, model, answer="b" * 60)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(tmp_path, model, answer="b" * 60, max_length=64)
    assert not [w for w in told if "was made for" in str(w.message)]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (small("llama", vocab_size=100), r"The batch has the token id \d+. The model's embedding has 100 rows"),
        (small("gpt2", n_positions=8), r"The batch is 12 tokens long, but the model has positions for 8 only"),
    ],
)
def test_batches_of_other_data_are_looked_at_too(model: Any, message: str, tmp_path: Path) -> None:
    loader = DataLoader([tiny_batch(rows=8)], batch_size=None)
    with pytest.raises(UserError, match=message):
        trainer(tmp_path).fit(SFTModule(model), loader)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_that_are_no_numbers_are_named(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=dtype)
    assert damage_of(model, "here") is None
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 2] = value
    with pytest.raises(UserError, match=r"1 of its weights hold NaN .*: model.layers.1.mlp.up_proj.weight"):
        load_model(model)
    model.save_pretrained(tmp_path / "bad")
    with pytest.raises(UserError, match=r"bad: 1 of its weights hold NaN .* The checkpoint is damaged"):
        SFTModule(str(tmp_path / "bad")).configure_model()


def test_the_first_of_the_rows_with_the_largest_id_is_found(tmp_path: Path) -> None:
    from lit_ift.chat.example import Example
    from lit_ift.data.rows import EncodedRow
    from lit_ift.data.store import BATCH, StoredRows

    def row(i: int, ids: list[int]) -> EncodedRow:
        return EncodedRow("instruction", f"r:{i}", {"answer": Example(ids, [-100] * len(ids), f"r:{i}")})

    rows = [row(i, [1, 2, i % 7]) for i in range(BATCH + 5)]
    rows[BATCH + 2] = row(BATCH + 2, [3, 90, 4])
    rows[BATCH + 4] = row(BATCH + 4, [90])
    assert StoredRows.in_memory(rows).largest_id() == (BATCH + 2, 90)
    assert StoredRows.in_memory(rows[:BATCH]).largest_id() == (6, 6)
