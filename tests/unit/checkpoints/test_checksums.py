"""Checkpoints with one flipped bit, or cut short: none is taken for whole unless nothing that is loaded differs."""

import random
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import save

from lit_ift.checkpoints.checksums import check_checksums
from lit_ift.checkpoints.resume import newest_checkpoint
from lit_ift.checkpoints.weights import open_checkpoint
from lit_ift.checkpoints.writing import AtomicCheckpointIO, put_in_place, read_header, staging_path
from lit_ift.errors import UserError

pytestmark = pytest.mark.slow

HEADER: dict[str, Any] = {
    "loops": {"fit_loop": {"epoch": 1}},
    "lr_schedulers": [{"last_epoch": 3}],
    "logged": {"folder": "runs/version_0", "next_step": 3, "rows": {}},
    "hyper_parameters": {"model": "somewhere", "optimizer": None},
    "callbacks": {"RunCheckpoint": {"best_model_score": torch.tensor(2.5)}},
}


def state(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    weights = {f"model.{name}": torch.randn(7, 5, generator=generator) for name in "abc"}
    moments = {
        i: {"step": torch.tensor(3.0), "exp_avg": torch.randn(7, 5, generator=generator)} for i in range(len(weights))
    }
    groups = [{"lr": 0.1, "params": [*moments]}]
    return {"state_dict": weights, "optimizer": {"state": moments, "param_groups": groups}}


def write(path: Path, kind: str, step: int) -> None:
    values, header = state(step), {**HEADER, "global_step": step}
    if kind == "file":
        checkpoint = {**header, "state_dict": values["state_dict"], "optimizer_states": [values["optimizer"]]}
        AtomicCheckpointIO().save_checkpoint(checkpoint, path)
        return
    staged = staging_path(path)
    names = list(values["state_dict"])
    optimizer = {
        "state": {names[i]: moments for i, moments in values["optimizer"]["state"].items()},
        "param_groups": [{"lr": 0.1, "params": names}],
    }
    save({"state_dict": values["state_dict"], "optimizer_0": optimizer}, checkpoint_id=staged, no_dist=True)
    torch.save(header, staged / "meta.pt")
    put_in_place(staged, path)


@pytest.fixture(params=["file", "folder"])
def written(request: Any, tmp_path: Path) -> Path:
    """The folder of a run's checkpoints, of steps 4 and 5."""
    for step in (4, 5):
        write(tmp_path / f"last-step={step}.ckpt", request.param, step)
    return tmp_path


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def outcome(folder: Path, expected: dict[str, Any]) -> str:
    """What ``--resume auto`` would go on with: ``passed over``, or ``taken`` with all of it as it was written."""
    notes: list[str] = []
    found = newest_checkpoint(folder, notes)
    assert found is not None, notes  # The other one is whole.
    path, header = found
    if path.name == "last-step=4.ckpt":
        assert any("last-step=5.ckpt cannot be read as a checkpoint" in note for note in notes), notes
        return "passed over"
    assert header["global_step"] == 5
    assert same(AtomicCheckpointIO().load_checkpoint(path, weights_only=True), expected)
    return "taken"


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def damaged(folder: Path, damages: Callable[[bytes], Iterator[bytes]]) -> Counter[str]:
    """Outcomes of damages to the later checkpoint, each by itself."""
    expected = AtomicCheckpointIO().load_checkpoint(folder / "last-step=5.ckpt", weights_only=True)
    counts: Counter[str] = Counter()
    for file in files_of(folder / "last-step=5.ckpt"):
        content = file.read_bytes()
        for changed in damages(content):
            file.write_bytes(changed)
            counts[outcome(folder, expected)] += 1
        file.write_bytes(content)
    assert outcome(folder, expected) == "taken"
    return counts


def flips(content: bytes, places: list[int], seed: int) -> Iterator[bytes]:
    draw = random.Random(seed)
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        yield bytes(changed)


def test_flips_anywhere(written: Path) -> None:
    def damages(content: bytes) -> Iterator[bytes]:
        places = random.Random(1).sample(range(len(content)), min(len(content), 80))
        return flips(content, places, seed=2)

    counts = damaged(written, damages)
    print(f"{counts.total()} flips: {dict(counts)}")
    assert counts["passed over"] > 0.3 * counts.total()  # torch pads records to 64 bytes.


def test_flips_in_the_header(written: Path) -> None:
    """The pickle that says what there is, or the index of shards, and the archive's own directory."""

    def damages(content: bytes) -> Iterator[bytes]:
        if content[:2] != b"PK":
            places = list(range(0, len(content), 23))
        else:
            directory = content.rindex(b"PK\5\6")
            places = [*range(0, 900, 19), *range(directory - 300, len(content), 9)]
        return flips(content, [place for place in places if place < len(content)], seed=3)

    counts = damaged(written, damages)
    print(f"{counts.total()} flips: {dict(counts)}")
    assert counts["passed over"] > 0.3 * counts.total()


def test_values_that_were_changed(written: Path) -> None:
    """Every flip inside a value is found: torch alone would load the wrong value and say nothing."""
    path = written / "last-step=5.ckpt"
    file = path if path.is_file() else next(path.glob("*.distcp"))
    content = file.read_bytes()
    raw = state(5)["state_dict"]["model.b"].numpy().tobytes()
    start = content.index(raw)
    for changed in flips(content, list(range(start, start + len(raw), 3)), seed=4):
        file.write_bytes(changed)
        with pytest.raises(UserError, match=r"Bad CRC-32|checksum of .* is wrong"):
            check_checksums(path)
        with pytest.raises(UserError, match="It is damaged"):
            open_checkpoint(path)
        with pytest.raises(UserError, match="It is damaged"):
            AtomicCheckpointIO().load_checkpoint(path)


def test_files_that_were_cut(written: Path) -> None:
    def damages(content: bytes) -> Iterator[bytes]:
        lengths = {0, 1, len(content) - 1, *random.Random(5).sample(range(len(content)), min(len(content), 20))}
        return (content[:length] for length in lengths)

    counts = damaged(written, damages)
    print(f"{counts.total()} truncations: {dict(counts)}")
    assert set(counts) == {"passed over"}


def test_a_header_alone_is_checked_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write(path, "file", 5)
    with zipfile.ZipFile(path) as archive:
        record = next(info for info in archive.infolist() if info.filename.endswith("data.pkl"))
    content = bytearray(path.read_bytes())
    content[content.index(b"global_step")] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"cannot be read as a checkpoint: Bad CRC-32 for file '{record.filename}'"):
        read_header(path)


def test_an_index_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write(path, "folder", 5)
    index = (path / ".metadata").read_bytes()
    (path / ".metadata").write_bytes(index.replace(b"model.a", b"model.z"))
    with pytest.raises(UserError, match=r"\.metadata is not what was written"):
        read_header(path)
    (path / ".metadata").write_bytes(index)
    check_checksums(path)
    (path / ".metadata.sha256").unlink()  # As plain Lightning writes it.
    assert read_header(path)["global_step"] == 5
    shutil.rmtree(path)
    with pytest.raises(FileNotFoundError):
        check_checksums(path)
