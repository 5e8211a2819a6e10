"""Workers on this machine: one process each, which loads the weights once and does one scan after another."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from synthseg.cohort.crew import lost
from synthseg.cohort.work import Job, Report, Settings
from synthseg.engine.machine import usable_cores
from synthseg.errors import SynthsegError, UsageError

CORES_A_WORKER = 4  # by default: more threads on one scan bring less than another scan beside it
MAX_FALSE_STARTS = 3  # of one place in the pool, one after another: then it stays empty
WORKER = (sys.executable, "-m", "synthseg.cohort.worker")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Layout:
    """Who works where: the device of every worker, and its CPU threads."""

    devices: tuple[str, ...]
    threads: int


def lay_out(device: str, workers: int | None, threads: int | None) -> Layout:
    """Workers for a device as the user names it.

    By default one a CUDA device, so that each holds the weights once, or on the CPU one for every ``CORES_A_WORKER``
    cores. More workers than devices share them in turn: each has its copy, and reads while another one computes.
    Threads are the cores divided among the workers.
    """
    places = _devices(device)
    if workers is None:
        workers = len(places) if places != ["cpu"] else max(1, usable_cores() // CORES_A_WORKER)
    if workers < 1:
        raise UsageError("workers", found=str(workers), fix="use a number of at least 1")
    share = max(1, usable_cores() // workers)
    return Layout(tuple(places[i % len(places)] for i in range(workers)), threads or share)


def _devices(device: str) -> list[str]:
    if device not in ("auto", "cuda"):
        return [device]
    import torch

    if torch.cuda.is_available():
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu" if device == "auto" else device]


@dataclass
class _Member:
    """A place in the pool, and the process in it."""

    device: str
    process: subprocess.Popen[bytes] | None = None
    log: IO[bytes] | None = None
    heard: bytes = b""
    ready: bool = False
    job: Job | None = None
    since: float = 0.0
    false_starts: int = 0
    told: SynthsegError | None = field(default=None)

    @property
    def gone(self) -> bool:
        return self.false_starts >= MAX_FALSE_STARTS or self.told is not None


class Pool:
    """A crew of processes (:class:`synthseg.cohort.crew.Crew`).

    A process that dies is replaced, and its scan reported as lost. One that hears no more from us ends by itself.

    Args:
        digest: of the settings, which every worker compares with what it finds.
        limit_s: a scan that takes longer is given up, with its process; None: no limit.
        tell: hears when a place in the pool stays empty for good.
        command: what a worker is started with.
    """

    def __init__(
        self,
        settings: Settings,
        digest: str,
        layout: Layout,
        *,
        limit_s: float | None = None,
        command: Sequence[str] = WORKER,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._settings, self._digest, self._layout, self._limit_s = settings, digest, layout, limit_s
        self._command, self._say = list(command), tell
        self._selector = selectors.DefaultSelector()
        self._members = [_Member(device) for device in layout.devices]
        for member in self._members:
            self._start(member)

    @property
    def busy(self) -> int:
        return sum(member.job is not None for member in self._members)

    @property
    def processes(self) -> list[int]:
        """Process numbers of those who are ready to work or at it."""
        return [m.process.pid for m in self._members if m.process is not None and m.ready]

    def room(self) -> int:
        return sum(member.ready and member.job is None for member in self._members)

    def give(self, job: Job, *, overwrite: bool) -> None:
        member = next(member for member in self._members if member.ready and member.job is None)
        member.job, member.since = job, time.monotonic()
        self._tell(member, {"job": job.to_dict(), "overwrite": overwrite})

    def reports(self, timeout_s: float) -> list[Report]:
        found: list[Report] = []
        for key, _ in self._selector.select(timeout_s):
            found += self._hear(key.data)
        for member in self._members:
            if member.job is not None and self._limit_s and time.monotonic() - member.since > self._limit_s:
                found += self._bury(member, f"was stopped after {self._limit_s:g} s, the limit for a scan,")
        if all(member.gone for member in self._members):
            raise next((member.told for member in self._members if member.told), None) or self._never_started()
        return found

    def recall(self) -> list[str]:
        return []  # whoever has a job is at it

    def close(self) -> None:
        for member in self._members:
            if member.process is not None and member.process.stdin is not None:
                with contextlib.suppress(OSError):
                    member.process.stdin.close()  # ends it at once, see worker.py
        for member in self._members:
            if member.process is not None:
                self._end(member)
        self._selector.close()

    def _start(self, member: _Member) -> None:
        environment = os.environ | dict.fromkeys(_THREADS, str(self._layout.threads))
        environment.setdefault("THP_MEM_ALLOC_ENABLE", "0")  # as cli/process.py has it, and says why
        member.log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        member.process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=member.log,
            env=environment,
        )
        member.heard, member.ready = b"", False
        assert member.process.stdout is not None
        os.set_blocking(member.process.stdout.fileno(), False)
        self._selector.register(member.process.stdout, selectors.EVENT_READ, member)
        settings = self._settings.to_dict()
        how = {"settings": settings, "digest": self._digest, "device": member.device, "threads": self._layout.threads}
        self._tell(member, how)

    def _tell(self, member: _Member, what: dict[str, Any]) -> None:
        assert member.process is not None
        assert member.process.stdin is not None
        with contextlib.suppress(OSError):  # it is dead: the end of its answers will say so
            member.process.stdin.write(json.dumps(what).encode() + b"\n")
            member.process.stdin.flush()

    def _hear(self, member: _Member) -> list[Report]:
        assert member.process is not None
        assert member.process.stdout is not None
        heard = member.process.stdout.read()
        if heard is None:  # nothing yet, after all
            return []
        if not heard:
            return self._bury(member, "")
        *lines, member.heard = (member.heard + heard).split(b"\n")
        return [report for line in lines for report in self._take(member, json.loads(line))]

    def _take(self, member: _Member, said: dict[str, Any]) -> list[Report]:
        if "ready" in said:
            member.ready, member.false_starts = True, 0
        elif "error" in said:
            told = said["error"]
            kind = UsageError if told["exit_code"] == UsageError.exit_code else SynthsegError
            member.told = kind(told["subject"], found=told["found"], fix=told["fix"])
        else:
            member.job = None
            return [Report(**said["report"])]
        return []

    def _bury(self, member: _Member, why: str) -> list[Report]:
        """A process is dead, or shall be: say what it took with it, and put another one in its place."""
        assert member.process is not None
        worker = f"{os.uname().nodename}:{member.process.pid}" if hasattr(os, "uname") else str(member.process.pid)
        died = self._end(member)
        found = []
        if member.job is not None:
            seconds = time.monotonic() - member.since
            found = [lost(member.job, why or died, worker=worker, seconds=seconds)]
        elif not member.ready:
            member.false_starts += 1
        member.job, member.process = None, None
        if not member.gone:
            self._start(member)
        else:
            why = str(member.told or "") or f"{MAX_FALSE_STARTS} workers died before their first scan; the last {died}"
            left = sum(not other.gone for other in self._members)
            self._say(f"a place for a worker ({member.device}) stays empty, {left} are left: {why}")
        return found

    def _end(self, member: _Member) -> str:
        """Kill a process if it lives, and say how it ended."""
        process = member.process
        assert process is not None
        if process.stdout is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(process.stdout)
            process.stdout.close()
        try:
            code = process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        return f"{_cause(code)}{self._last_words(member)}"

    def _last_words(self, member: _Member) -> str:
        if member.log is None:
            return ""
        with member.log as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 2000))
            lines = log.read().decode(errors="replace").strip().splitlines()
        member.log = None
        return f", its last words {lines[-1][:200]!r}," if lines else ""

    def _never_started(self) -> SynthsegError:
        found = f"{MAX_FALSE_STARTS} workers in every place that died before their first scan"
        fix = "see that there is memory for them (fewer --workers), and that `synthseg doctor` works"
        return SynthsegError("workers", found=found, fix=fix)


def _cause(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed by signal 9, as systems do to a process when memory runs out,"
    if code < 0:
        return f"was killed by signal {-code} ({signal.Signals(-code).name})"
    return f"ended with exit code {code}"
