import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lit_ift.export.memory_mapped import memory_mapped


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_values_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "matrix": (torch.randn(5, 3) * 4).to(dtype),
        "transposed": (torch.randn(5, 3) * 4).to(dtype).T,
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.empty(0, 4, dtype=dtype),
    }
    found = memory_mapped(tensors.items(), tmp_path / "weights")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)


def test_nothing_at_all(tmp_path: Path) -> None:
    assert memory_mapped([], tmp_path / "weights") == {}


def test_tied_tensors_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    tied = torch.ones(1000)
    found = memory_mapped([("a", tied), ("b", torch.zeros(3)), ("c", tied)], tmp_path / "weights")
    assert found["a"] is found["c"]
    assert (tmp_path / "weights").stat().st_size < 2 * tied.nbytes


def test_one_tensor_is_held_at_a_time(tmp_path: Path) -> None:
    """And one at the address of a freed one is not taken for it."""
    alive: list[weakref.ref[Tensor]] = []

    def entries() -> Iterator[tuple[str, Tensor]]:
        for i in range(20):
            assert sum(tensor() is not None for tensor in alive) <= 1
            tensor = torch.full((64,), float(i))
            alive.append(weakref.ref(tensor))
            yield str(i), tensor
            del tensor

    found = memory_mapped(entries(), tmp_path / "weights")
    assert [float(found[str(i)][0]) for i in range(20)] == list(range(20))


def test_each_has_a_storage_of_its_own_and_outlives_the_file(tmp_path: Path) -> None:
    """What saves models takes tensors with one storage for tied."""
    found = memory_mapped([("a", torch.ones(3)), ("b", torch.zeros(3))], tmp_path / "weights")
    (tmp_path / "weights").unlink()
    assert found["a"].untyped_storage().data_ptr() != found["b"].untyped_storage().data_ptr()
    found["a"].add_(1.0)
    assert found["a"].tolist() == [2.0] * 3
    assert found["b"].tolist() == [0.0] * 3
