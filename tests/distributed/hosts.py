"""Two hosts on one machine: two network namespaces, joined by a pair of virtual Ethernet devices."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ADDRESSES = ("10.77.0.1", "10.77.0.2")


def _ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=check)


def why_not() -> str | None:
    """Why namespaces cannot be made here; None if they can."""
    if shutil.which("ip") is None:
        return "there is no `ip` command"
    name = f"lit-ift-try-{os.getpid()}"
    made = _ip("netns", "add", name, check=False)
    if made.returncode == 0:
        _ip("netns", "del", name)
    return None if made.returncode == 0 else f"network namespaces are not allowed: {made.stderr.strip()}"


def environment() -> dict[str, str]:
    """For a process that is to find the modules beside this file."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


@dataclass
class Host:
    """One of the two hosts.

    Args:
        number: 0 or 1.
        folder: where the output of what it runs is kept.
    """

    number: int
    folder: Path
    agents: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        return f"lit-ift-{os.getpid()}-{self.number}"

    @property
    def device(self) -> str:
        return f"lit{os.getpid() % 100_000}-{self.number}"

    @property
    def address(self) -> str:
        return ADDRESSES[self.number]

    @property
    def log(self) -> Path:
        return self.folder / f"host{self.number}.{len(self.agents)}.log"

    def torchrun(self, options: Sequence[str], command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start one process of `command`, a module and its arguments, under torchrun."""
        words = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *options]
        network = {
            "GLOO_SOCKET_IFNAME": self.device,  # Left alone, gloo would take 127.0.0.1.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # A restart must not read the addresses of the last try.
        }
        entry = self.log
        agent = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *words, "-m", *command],
            stdout=entry.open("wb"),
            stderr=subprocess.STDOUT,
            env=environment() | network,
            cwd=self.folder,
            start_new_session=True,
        )
        self.agents.append(agent)
        return agent

    def kill(self) -> None:
        """As if its plug were pulled: every process of the host, at once."""
        pids = _ip("netns", "pids", self.namespace).stdout.split()
        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)
        for agent in self.agents:
            agent.wait()

    def send(self, number: signal.Signals, *, agent: bool) -> None:
        """A signal to the training process, and to the agent that watches over it as well if asked for."""
        for pid in map(int, _ip("netns", "pids", self.namespace).stdout.split()):
            is_agent = b"torch.distributed.run" in Path(f"/proc/{pid}/cmdline").read_bytes()
            if agent or not is_agent:
                os.kill(pid, number)

    def cable(self, *, plugged: bool) -> None:
        """Cut the network of the host, or mend it."""
        _ip("-n", self.namespace, "link", "set", self.device, "up" if plugged else "down")

    def output(self) -> str:
        """What its latest command printed."""
        return (self.folder / f"host{self.number}.{len(self.agents) - 1}.log").read_text(errors="replace")


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other and nothing else; what runs on them ends with the block."""
    first, second = hosts = Host(0, folder), Host(1, folder)
    try:
        for host in hosts:
            _ip("netns", "add", host.namespace)
        _ip("link", "add", first.device, "type", "veth", "peer", "name", second.device)
        for host in hosts:
            _ip("link", "set", host.device, "netns", host.namespace)
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", host.device)
            _ip("-n", host.namespace, "link", "set", "lo", "up")
            host.cable(plugged=True)
        yield hosts
    finally:
        for host in hosts:
            if _ip("netns", "pids", host.namespace, check=False).returncode == 0:
                host.kill()
            _ip("netns", "del", host.namespace, check=False)
