"""Runs ``lit-ift fit`` on a tiny model in forked processes, kills them, starts them again, and compares the traces.

Forking pays for the heavy imports once. What is forked is a server that has imported and done nothing else: a process
that has threads already may leave their locks held in its children. Each rank of each attempt writes what it does to a
file, line by line, so that SIGKILL loses none of it. Events are counted alike in all runs; a kill point is the number
of an event.

Nothing here waits without an end: what takes too long is asked by SIGUSR1 for the stacks of its threads, which land in
its log, and killed.
"""

import csv
import faulthandler
import hashlib
import io
import json
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tiny import tiny_model, tiny_tokenizer
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.tensor import DTensor

from lit_ift.checkpoints import writing as atomic

# To the stream of errors, wherever it leads then; the server and all that is forked from it inherit this.
faulthandler.register(signal.SIGUSR1, file=2)

STARTING = 120.0
"""Time for the server to import all that runs need, and for a process to be forked from it [s]."""
_TIMED = ("train/tokens_per_s",)
_OF_STEPS = ("train/loss", "train/grad_norm", "train/lam", "train/lr")


KillAt = int | tuple[str, int] | None
"""The number of an event, from 1, or its name and its number among those of that name."""


class Killer:
    """Counts events in this process and ends it at a given one: SIGKILL goes to its group, other signals to itself."""

    def __init__(self, at: KillAt, by: signal.Signals, folder: Path, rank: int) -> None:
        self.at, self.by, self.count = at, by, Counter[str | None]()
        self.log = (folder / f"events-{rank}.txt").open("w")

    def event(self, name: str) -> None:
        self.count.update([name, None])
        self.log.write(f"{name}\n")
        self.log.flush()
        if self.at in (self.count[None], (name, self.count[name])):
            (os.killpg if self.by == signal.SIGKILL else os.kill)(os.getpid(), self.by)


KILLER: Killer | None = None


def event(name: str) -> None:
    if KILLER is not None:
        KILLER.event(name)


class Trace(L.Callback):
    """Writes row ids and losses of every batch, every validation, and a hash of the last weights.

    Args:
        path: file to add to; the rank is appended to its name.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def write(self, trainer: L.Trainer, *words: object) -> None:
        with Path(f"{self.path}.{trainer.global_rank}").open("a") as file:
            file.write(json.dumps(words) + "\n")

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.write(trainer, "start", trainer.fit_loop.epoch_loop.batch_progress.total.processed)

    def on_train_batch_start(self, *_: Any) -> None:
        event("batch start")

    def on_before_backward(self, *_: Any) -> None:
        event("before backward")

    def on_after_backward(self, *_: Any) -> None:
        event("after backward")

    def on_before_optimizer_step(self, *_: Any) -> None:
        event("before the optimizer step")

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        rows, losses = module.latest_losses
        number = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        values = [float(loss).hex() for loss in losses]
        stepped = not trainer.fit_loop._should_accumulate()
        logged = {name: float(trainer.callback_metrics[name]).hex() for name in _OF_STEPS} if stepped else {}
        self.write(trainer, "batch", number, trainer.current_epoch, trainer.global_step, rows, values, logged)
        event("batch end")

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        event("inside a validation")

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if not trainer.sanity_checking:
            number = trainer.fit_loop.epoch_loop.batch_progress.total.processed
            self.write(trainer, "validation", number, float(trainer.callback_metrics["val/loss"]).hex())
            event("validation end")

    def on_train_epoch_start(self, *_: Any) -> None:
        event("epoch start")

    def on_train_epoch_end(self, *_: Any) -> None:
        event("epoch end")

    def on_train_end(self, *_: Any) -> None:
        event("train end")

    def on_fit_end(self, trainer: L.Trainer, module: Any) -> None:
        weights = hashlib.sha256()
        for parameter in module.parameters():
            values = parameter.to_local() if isinstance(parameter, DTensor) else parameter  # This rank's part.
            weights.update(values.detach().numpy().tobytes())
        self.write(trainer, "end", weights.hexdigest())


class SavesItself(L.Callback):
    """Asks the Trainer for a checkpoint of one name after each epoch.

    Args:
        path: of the checkpoint.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        trainer.save_checkpoint(self.path)


class Hangs(L.Callback):
    """Never lets training begin."""

    def on_train_start(self, *_: Any) -> None:
        threading.Event().wait()


@dataclass
class Job:
    """A command that trains a tiny model in a folder of its own.

    Args:
        folder: of its outputs and traces.
        words: the command after ``lit-ift``.
        ranks: processes that train together.
        attempts: exit codes of the ranks of each attempt.
    """

    folder: Path
    words: list[str]
    ranks: int = 1
    attempts: list[list[int]] = field(default_factory=list)

    def run(
        self,
        kill_at: KillAt = None,
        kill_rank: int = 0,
        extra: Sequence[str] = (),
        *,
        own: Mapping[int, Sequence[str]] | None = None,
        by: signal.Signals = signal.SIGKILL,
        file_limit: int | None = None,
        grace: float = 2.0,
        timeout: float = 300.0,
    ) -> list[int]:
        """Start it and wait; return the exit codes of the ranks, negative for signals.

        Once one has failed, the others are killed as torchrun does.

        Args:
            kill_at: the event at which the process of `kill_rank` sends itself a signal.
            kill_rank: of the process.
            extra: more words of the command.
            own: more words for single ranks.
            by: the signal.
            file_limit: bytes that a file may have, as if the disk were full then.
            grace: what the others get after the first failure [s].
            timeout: for all of them [s].

        Raises:
            TimeoutError: some rank was still running; its log says where.
        """
        port, processes = _free_port(), []
        for rank in range(self.ranks):
            at = kill_at if rank == kill_rank else None
            words = [*self.words, *extra, *(own or {}).get(rank, ())]
            processes.append(_server().Process(target=self._child, args=(words, rank, port, at, by, file_limit)))
            _start(processes[-1])
        late = _wait(processes, timeout, grace)
        if late:
            raise TimeoutError(f"ranks {late} were still running after {timeout:g} s:\n{self.log()[-20_000:]}")
        self.attempts.append([int(process.exitcode or 0) for process in processes])
        return self.attempts[-1]

    def events(self, rank: int = 0) -> list[str]:
        """Names of the events of the latest attempt."""
        return (self.folder / f"events-{rank}.txt").read_text().splitlines()

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def traces(self) -> list[list[list[Any]]]:
        """For each rank the lines of all attempts."""
        return [
            [json.loads(line) for line in Path(f"{self.folder / 'trace'}.{rank}").read_text().splitlines()]
            for rank in range(self.ranks)
        ]

    def table(self) -> list[dict[str, str]]:
        """The rows of metrics.csv, but for what depends on the clock."""
        # A run that was killed before its first checkpoint is followed by one in a new folder.
        run = max((self.folder / "out" / "runs").iterdir(), key=lambda path: path.name)
        with (run / "metrics.csv").open() as file:
            return [{k: v for k, v in row.items() if k not in _TIMED} for row in csv.DictReader(file)]

    def _child(
        self, words: list[str], rank: int, port: int, kill_at: KillAt, by: signal.Signals, file_limit: int | None
    ) -> None:
        global KILLER
        code = 70
        try:
            os.setpgid(0, 0)
            file = os.open(self.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            _print_to(file)
            if self.ranks > 1:
                _as_torchrun_would(rank, self.ranks, port)
            torch.set_num_threads(1)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Ignored where the tests run in the background.
            if file_limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            KILLER = Killer(kill_at, by, self.folder, rank)
            _count_writing()
            from lit_ift.cli import main

            code = main(words)
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _print_to(file: int) -> None:
    """Send what is printed and logged to a file; a test runner holds on to the streams of its own."""
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    warnings.simplefilter("default")
    warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
    for name in (None, "lightning", "lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(sys.stderr)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _as_torchrun_would(rank: int, ranks: int, port: int) -> None:
    os.environ |= {
        **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(ranks)),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "forked",
    }
    from lightning.fabric.utilities.rank_zero import rank_zero_only
    from lightning.pytorch.utilities.rank_zero import rank_zero_only as of_trainer

    rank_zero_only.rank = of_trainer.rank = rank


def _count_writing() -> None:
    """Make events of the moments in which a checkpoint is half written, and around its renaming."""
    save, put, shards = torch.save, atomic.put_in_place, FileSystemWriter.write_data

    def half_and_whole(checkpoint: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        save(checkpoint, file, *args, **kwargs)
        if isinstance(file, io.BufferedWriter):
            file.flush()
            whole = os.fstat(file.fileno()).st_size
            os.ftruncate(file.fileno(), whole // 2)
            event("checkpoint half written")
            file.seek(0)
            save(checkpoint, file, *args, **kwargs)

    def shards_and_index(writer: FileSystemWriter, plan: Any, planner: Any) -> Any:
        done = shards(writer, plan, planner)
        for path in Path(writer.path).glob(f"__{plan.storage_data.prefix.strip('_').split('_')[0]}_*"):
            whole = path.read_bytes()
            os.truncate(path, len(whole) // 2)
            event("shard half written")
            path.write_bytes(whole)
        event("shard without an index")
        return done

    def around(staged: Path, path: Path) -> None:
        event("checkpoint written")
        put(staged, path)
        event("checkpoint renamed")

    torch.save = half_and_whole
    FileSystemWriter.write_data = shards_and_index
    atomic.put_in_place = around


@cache
def _server() -> Any:
    """Starts the server that all processes are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killing", "lit_ift.cli", "lit_ift.cli.training"])
    before = dict(os.environ)
    os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def _start(process: BaseProcess) -> None:
    """Fork a process from the server, which answers only when it has imported everything.

    Raises:
        TimeoutError: it did not answer.
    """
    failed: list[BaseException] = []

    def start() -> None:
        try:
            process.start()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    thread.join(STARTING)
    if failed:
        raise failed[0]
    if thread.is_alive():
        server: Any = forkserver._forkserver  # type: ignore[attr-defined]
        os.kill(server._forkserver_pid, signal.SIGUSR1)
        time.sleep(1)
        raise TimeoutError(f"the server forked no process within {STARTING:g} s; its stacks are among the errors above")


def _wait(processes: Sequence[BaseProcess], timeout: float, grace: float) -> list[int]:
    """Wait until all have ended; return the ranks that had to be killed though nothing had failed."""
    deadline = time.monotonic() + timeout
    late: list[int] = []
    failed = False
    while any(process.exitcode is None for process in processes):
        if not failed and any(process.exitcode for process in processes):
            failed = True
            deadline = min(deadline, time.monotonic() + grace)
        if time.monotonic() > deadline:
            running = [rank for rank, process in enumerate(processes) if process.exitcode is None]
            if not failed and not late:
                late = running
                for rank in late:
                    _signal(processes[rank], signal.SIGUSR1)
                time.sleep(1)
            for rank in running:
                _signal(processes[rank], signal.SIGKILL)
        time.sleep(0.01)
    return late


def _signal(process: BaseProcess, number: signal.Signals) -> None:
    """Send a signal to a process; SIGKILL to all of its group."""
    assert process.pid is not None
    try:
        (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)
    except ProcessLookupError:  # It ended meanwhile, or is not yet the leader of a group.
        process.kill()


def write_inputs(folder: Path) -> None:
    """A tiny model with dropout, and 47 rows; to be called once."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_model("llama", dtype=torch.float32, attention_dropout=0.2).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    for name, count in (("train", 40), ("val", 7)):
        rows = [{"prompt": f"Say {i} times b", "completion": "b" * (1 + i % 7)} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_job(
    inputs: Path,
    folder: Path,
    *,
    workers: int = 0,
    ranks: int = 1,
    packing: bool = False,
    strategy: str = "",
    **more: Any,
) -> Job:
    """IFT with a noisy λ on 40 rows: 2 epochs of 7 batches on each of one or two ranks, steps of 3 batches.

    A validation comes after batch 4 of an epoch, inside a step, and another one after its last batch, whose step is
    short.
    """
    folder.mkdir(parents=True)
    trace = {"class_path": "killing.Trace", "init_args": {"path": str(folder / "trace")}}
    options = {
        "model": "IFTModule",
        "model.init_args.model": inputs / "model",
        "model.init_args.lam_noise": 0.3,
        "model.init_args.optimizer": "torch.optim.AdamW",
        "model.init_args.optimizer.init_args.lr": 0.01,
        "data": "InstructionDataModule",
        "data.init_args.train": inputs / "train.jsonl",
        "data.init_args.val": inputs / "val.jsonl",
        "data.init_args.batch_size": 6 // ranks,
        "data.init_args.packing": packing,
        "data.init_args.num_workers": workers,
        "data.init_args.cache_dir": inputs / "cache",
        "trainer.accelerator": "cpu",
        "trainer.devices": ranks,
        "trainer.strategy": strategy or ("ddp" if ranks > 1 else "auto"),
        "trainer.max_epochs": 2,
        "trainer.accumulate_grad_batches": 3,
        "trainer.val_check_interval": 4,
        "trainer.num_sanity_val_steps": 1,
        "trainer.enable_progress_bar": False,
        "trainer.enable_model_summary": False,
        "trainer.default_root_dir": folder / "out",
        "trainer.callbacks": json.dumps([trace]),
        "checkpoint.every_n_train_steps": 2,
        "export.enabled": False,
        "curves.enabled": False,
        "resume": "auto",
        **more,
    }
    words = [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in options.items()]
    return Job(folder, ["fit", *words], ranks)


def attempts_of(trace: list[list[Any]]) -> list[list[list[Any]]]:
    """A rank's lines, cut where the command was started again."""
    parts: list[list[list[Any]]] = []
    for line in trace:
        if line[0] == "start":
            parts.append([])
        parts[-1].append(line)
    return parts


def problems(job: Job, whole: Job) -> list[str]:
    """How the attempts of a job differ from one that was never killed; none if it is the same to the last bit.

    Every line that any attempt wrote must be one of the unbroken run, in its order, and each attempt must go on at a
    point that the one before had reached.
    """
    found = [] if not any(job.attempts[-1]) else [f"the last attempt ended with {job.attempts[-1]}"]
    for rank, (ours, theirs) in enumerate(zip(job.traces(), whole.traces(), strict=True)):
        reference = theirs[1:]
        reached = 0
        for number, attempt in enumerate(attempts_of(ours)):
            begun, lines = attempt[0][1], attempt[1:]
            if not lines:
                continue
            if lines[0] not in reference:
                found.append(f"rank {rank}, attempt {number}, begun at {begun}: {lines[0]} is not in the unbroken run")
                break
            at = reference.index(lines[0])
            if at > reached:
                found.append(f"rank {rank}, attempt {number}: skipped {reference[reached:at]}")
            for line, expected in zip(lines, reference[at:], strict=False):
                if line != expected:
                    found.append(f"rank {rank}, attempt {number}, begun at {begun}: {line} instead of {expected}")
                    break
            reached = at + len(lines)
        if reached != len(reference):
            found.append(f"rank {rank}: ended at line {reached} of {len(reference)}")
    if job.table() != whole.table():
        found.append(f"metrics.csv differs: {len(job.table())} rows, {len(whole.table())} in the unbroken run")
    return found
