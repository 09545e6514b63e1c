"""Signs of life: who fell silent is named, nobody else is. Two processes meet in tests/distributed/test_hosts.py."""

import pickle
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from lit_ift.callbacks import LostRanks


class Process:
    """A rank of a run of several, in a thread of this process."""

    def __init__(self, rank: int, world: int, port: list[int], met: threading.Barrier) -> None:
        self.callback = LostRanks(interval=0.05, patience=0.4, enabled=True)
        self.port, self.met = port, met
        strategy = SimpleNamespace(broadcast=self.broadcast, barrier=met.wait)
        self.trainer: Any = SimpleNamespace(world_size=world, global_rank=rank, strategy=strategy)

    def broadcast(self, value: int) -> int:
        if self.trainer.global_rank == 0:
            self.port.append(value)
        self.met.wait()
        return self.port[0]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    monkeypatch.setattr("lit_ift.callbacks.lost_ranks.of_every_rank", lambda own: [f"host{i}" for i in range(3)])
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    met, port = threading.Barrier(3), []
    found = [Process(rank, 3, port, met) for rank in range(3)]
    in_all(found, lambda process: process.callback.setup(process.trainer, None, "fit"))
    return found


def in_all(processes: list[Process], call: Any) -> None:
    threads = [threading.Thread(target=call, args=(process,)) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def notes_of(process: Process, error: BaseException) -> list[str]:
    process.callback.on_exception(process.trainer, None, error)
    return getattr(error, "__notes__", [])


def test_the_silent_one_is_named(processes: list[Process], capsys: pytest.CaptureFixture) -> None:
    processes[1].callback._end()
    (note,) = notes_of(processes[2], RuntimeError("Connection closed by peer"))
    assert "Rank 2 on host2 gives up: rank 1 on host1 was lost" in note
    assert "rank 0" not in note
    assert note in capsys.readouterr().err


def test_nobody_is_blamed_for_an_error_of_ones_own(processes: list[Process]) -> None:
    assert notes_of(processes[1], ValueError("a bug")) == []
    assert notes_of(processes[0], RuntimeError("a bug")) == ["Rank 0 on host0 gives up: " + LOST_ONE]


LOST_ONE = (
    "rank 1 on host1 was lost: no sign of life for 0.4 s, because it ended or cannot be reached. Look at its log first."
)


def test_all_alive(processes: list[Process]) -> None:
    assert notes_of(processes[1], RuntimeError("out of memory")) == []
    in_all([p for p in processes if p is not processes[1]], lambda process: process.callback._end())


def test_without_rank_0_nobody_knows(processes: list[Process]) -> None:
    processes[0].callback._end()
    processes[0].callback._server = None
    (note,) = notes_of(processes[1], RuntimeError("Connection reset"))
    assert "rank 0 on host0 was lost: it ended, or cannot be reached" in note


def test_ends_together(processes: list[Process]) -> None:
    in_all(processes, lambda process: process.callback.teardown(process.trainer, None, "fit"))
    assert all(process.callback._thread is None and process.callback._server is None for process in processes)


def test_one_process_watches_nobody() -> None:
    """Nor do several, unless they are asked to."""
    for callback, size in ((LostRanks(enabled=True), 1), (LostRanks(), 2)):
        callback.setup(SimpleNamespace(world_size=size), None, "fit")  # type: ignore[arg-type]
        assert callback._thread is None
        pickle.loads(pickle.dumps(callback))


@pytest.mark.parametrize(("options", "named"), [({"interval": 0.0}, "interval=0"), ({"patience": 1.5}, "patience=1.5")])
def test_options(options: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LostRanks(**options)
