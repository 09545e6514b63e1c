"""No objective makes the logits of all positions, (B, T, V), at once: neither forward nor backward."""

from typing import Any, Final

import pytest
import torch
from precisions import OBJECTIVES, first_epoch
from tiny import VOCABULARY_SIZE, tiny_batch, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_ift import CausalLMModule, SFTModule
from lit_ift.losses import TOKEN_LOSSES, TokenLoss, logprobs
from lit_ift.losses.logprobs import target_mask

CHUNK: Final = 8
"""Rows of logits that may be there at once."""
NEEDED: Final[dict[str, dict[str, Any]]] = {"deformed_log": {"alpha": 0.3}}
"""Options that a token loss has no default for."""


class LogitRows(TorchDispatchMode):
    """Notes how many rows the largest tensor has that is as wide as the vocabulary; no other size is 259."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (VOCABULARY_SIZE,):
                self.most = max(self.most, tensor.numel() // VOCABULARY_SIZE)
        return made


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "_CHUNK_ELEMENTS", CHUNK * VOCABULARY_SIZE)


def narrow_model(**options: Any) -> Any:
    """No weight is taken for logits: they are as wide as the vocabulary when they are transposed."""
    return tiny_model(hidden_size=CHUNK, head_dim=4, **options)


def test_logits_of_a_model_are_seen() -> None:
    batch = tiny_batch(rows=4, length=12)
    with LogitRows() as seen:
        narrow_model()(input_ids=batch["input_ids"]).logits.sum().backward()
    assert seen.most == 4 * 12


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_token_losses(name: str) -> None:
    options = NEEDED.get(name)
    reference = {"reference": "model"} if TokenLoss(name, options).needs_reference else {}
    module = SFTModule(narrow_model(), loss=name, options=options, **reference)
    module.prepare()
    batch = tiny_batch(rows=6, length=24)
    assert int(target_mask(batch["labels"]).sum()) > 4 * CHUNK
    with LogitRows() as seen:
        module.example_losses(batch)[0].sum().backward()
    assert 0 < seen.most <= CHUNK


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_epoch_of_every_objective(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference, validation and parts of a mixed objective included."""
    trained = []
    check_batch = CausalLMModule.check_batch

    def note(module: CausalLMModule, batch: dict[str, Any]) -> None:
        check_batch(module, batch)
        trained.append(int(target_mask(batch["labels"]).sum()))

    monkeypatch.setattr(CausalLMModule, "check_batch", note)
    monkeypatch.setenv("LIT_IFT_DATA_CACHE", "")  # It is set anew for each run, and put back.
    folder = tmp_path_factory.getbasetemp() / "inputs"
    if not folder.exists():
        from invariance import write_inputs

        folder.mkdir()
        write_inputs(folder)
    with LogitRows() as seen:
        first_epoch(folder, name, "32-true")
    width = max(CHUNK, 16)  # The transposed weight of the head is as wide, too, and has a row for each hidden feature.
    assert max(trained) > 4 * CHUNK
    assert 0 < seen.most <= width
