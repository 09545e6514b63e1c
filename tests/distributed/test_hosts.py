"""One run on two hosts that are joined by a wire, with what can happen to a host and to the wire."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import run
from rounding import NEAR32

sys.path.insert(0, str(Path(__file__).parent))

from hosts import Host, two_hosts, why_not

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
PORT = 29_511

Pair = tuple[Host, Host]
Build = Callable[..., list[str]]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Pair]:
    with two_hosts(tmp_path) as both:
        yield both


@pytest.fixture(scope="module")
def command(model_folder: Path, data_file: Path) -> Build:
    """`lit-ift fit` on 21 rows in global batches of 4, 6 steps an epoch, as a module and its arguments."""

    def build(trace: Path, *more: str, seconds: float = 0.0, batch_size: int = 2) -> list[str]:
        options = {
            "model": "IFTModule",
            "model.init_args.model": model_folder,
            "model.init_args.optimizer": "torch.optim.SGD",
            "model.init_args.optimizer.init_args.lr": 0.05,
            "data": "InstructionDataModule",
            "data.init_args.train": data_file,
            "data.init_args.batch_size": batch_size,
            "data.init_args.max_length": 512,
            "trainer.accelerator": "cpu",
            "trainer.max_epochs": 2,
            "trainer.default_root_dir": trace.parent / "out",
            "trainer.enable_progress_bar": "false",
            "trainer.callbacks+": "step_trace.Trace",
            "trainer.callbacks.path": trace,
            "trainer.callbacks.seconds": seconds,
            "export.enabled": "false",
            "curves.enabled": "false",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return ["lit_ift", "fit", *words, *more]

    return build


TWO_NODES = ["--trainer.num_nodes", "2", "--trainer.devices", "1"]


def ddp(timeout: int = 30) -> list[str]:
    name = "lightning.pytorch.strategies.DDPStrategy"
    words = [*TWO_NODES, "--trainer.strategy", name, "--trainer.strategy.init_args.timeout", f"0:00:{timeout:02}"]
    return [*words, "--lost_ranks.enabled", "true"]


def fsdp(*, every: int) -> list[str]:
    """FSDP2 that may be started over: a checkpoint after every few steps, and what is found of it resumed."""
    words = [*TWO_NODES, "--trainer.strategy", "lit_ift.distributed.FSDP2Strategy", "--resume", "auto"]
    words += ["--trainer.strategy.init_args.timeout_minutes", "0.5"]
    return [*words, "--checkpoint.monitor", "null", "--checkpoint.every_n_train_steps", str(every)]


def launch(hosts: Pair, command: list[str]) -> None:
    for host in hosts:
        where = ["--node-rank", str(host.number), "--master-addr", hosts[0].address, "--master-port", str(PORT)]
        host.torchrun(where, command)


def launch_elastic(hosts: Pair, command: list[str], *numbers: int) -> None:
    """The agents agree among themselves who is there, and start over when a process is lost."""
    for number in numbers or (0, 1):
        where = ["--rdzv-backend", "c10d", "--rdzv-id", "job", "--rdzv-endpoint", f"{hosts[0].address}:{PORT}"]
        where += ["--local-addr", hosts[number].address, "--max-restarts", "2"]
        where += ["--rdzv-conf", f"is_host={1 - number},join_timeout=90,last_call_timeout=5"]
        hosts[number].torchrun(where, command)


def wait_for_steps(trace: Path, number: int, hosts: Pair, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not trace.is_file() or len(trace.read_text().splitlines()) < number:
        assert time.monotonic() < deadline, [host.output()[-2000:] for host in hosts]
        time.sleep(0.1)


def end(host: Host, within: float) -> int:
    """Exit code of the host's agent."""
    try:
        return host.agents[-1].wait(within)
    except subprocess.TimeoutExpired:
        pytest.fail(f"host {host.number} still runs after {within} s: {host.output()[-2000:]}")


def losses(trace: Path) -> list[float]:
    """Of all steps in order; a step that was taken again must have come out the same to the last bit."""
    found: dict[int, str] = {}
    for line in trace.read_text().splitlines():
        step, loss = line.split()
        assert found.setdefault(int(step), loss) == loss, f"step {step}"
    assert list(found) == list(range(1, len(found) + 1))
    return [float.fromhex(loss) for loss in found.values()]


@pytest.fixture(scope="module")
def alone(command: Build, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of one process on one host."""
    trace = tmp_path_factory.mktemp("alone") / "trace"
    assert run(*command(trace, batch_size=4)[1:]) == 0
    assert len(losses(trace)) == 12
    return losses(trace)


def test_two_hosts_train_as_one_though_a_process_dies(
    hosts: Pair, command: Build, alone: list[float], tmp_path: Path
) -> None:
    """FSDP2 over the wire. The agents start both processes over, and these go on from the last checkpoint."""
    trace = tmp_path / "trace"
    launch_elastic(hosts, command(trace, *fsdp(every=3), seconds=0.3))
    wait_for_steps(trace, 5, hosts)
    hosts[1].send(signal.SIGKILL, agent=False)
    for host in hosts:
        assert end(host, 180) == 0, host.output()[-3000:]
    assert "after optimizer step 3" in hosts[0].output()
    assert losses(trace) == pytest.approx(alone, rel=NEAR32)


def test_two_hosts_are_told_to_stop_and_go_on(hosts: Pair, command: Build, alone: list[float], tmp_path: Path) -> None:
    """SIGTERM on one host, as before it is taken away: both end at the same step, and the same command goes on."""
    trace = tmp_path / "trace"
    launch(hosts, command(trace, *fsdp(every=100), seconds=0.3))
    wait_for_steps(trace, 4, hosts)
    hosts[1].send(signal.SIGTERM, agent=True)
    for host in hosts:
        assert end(host, 60) != 0
    reached = len(losses(trace))
    assert reached < 12
    assert f"SIGTERM: stopped after optimizer step {reached}" in hosts[0].output()
    launch(hosts, command(trace, *fsdp(every=100), seconds=0.3))
    for host in hosts:
        assert end(host, 180) == 0, host.output()[-3000:]
    assert f"after optimizer step {reached}" in hosts[0].output()
    assert len(trace.read_text().splitlines()) == 12
    assert losses(trace) == pytest.approx(alone, rel=NEAR32)


def test_a_lost_host_ends_the_other(hosts: Pair, command: Callable[..., list[str]], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    launch(hosts, command(trace, *ddp(), seconds=0.3))
    wait_for_steps(trace, 2, hosts)
    hosts[1].kill()
    assert end(hosts[0], 60) != 0
    assert "rank 1 on" in hosts[0].output()
    assert "was lost" in hosts[0].output()


def test_a_cut_wire(hosts: Pair, command: Build, tmp_path: Path) -> None:
    """For a short time it is waited for; after the timeout both ends give up and say whom they miss."""
    trace = tmp_path / "trace"
    launch(hosts, command(trace, *ddp(timeout=15), seconds=0.3))
    wait_for_steps(trace, 2, hosts)
    hosts[1].cable(plugged=False)
    time.sleep(10)
    stopped_at = len(losses(trace))
    hosts[1].cable(plugged=True)
    wait_for_steps(trace, stopped_at + 2, hosts)
    hosts[1].cable(plugged=False)
    for host, missed in ((hosts[0], "rank 1 on"), (hosts[1], "rank 0 on")):
        assert end(host, 60) != 0
        assert missed in host.output()
