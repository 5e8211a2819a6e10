"""The forked process that reads mutants, seen from outside: questions, answers, and an end to it when it hangs."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.worker import place_in, serve

_FILES_A_PROCESS = 3000


class Reader:
    """A forked process that reads files with one of our readers; replaced as needed."""

    def __init__(self, run: Callable[[Path], object], folder: Path, *, bound: int, seconds: float) -> None:
        self._run, self._folder, self._bound, self._seconds = run, folder, bound, seconds
        self._pid = 0
        self._read = 0
        self._buffer = b""

    def __call__(self, path: Path) -> dict[str, Any]:
        """The answer for a path (:func:`fuzz.worker.examine`), or "hang" or "crash" with what is known."""
        if not self._pid or self._read >= _FILES_A_PROCESS:
            self.close()
            self._start()
        self._read += 1
        start = time.monotonic()
        os.write(self._requests, json.dumps(os.fspath(path)).encode() + b"\n")
        line = self._line(start + self._seconds * crowd())
        took = time.monotonic() - start
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        hung = line is None
        status = self.close(kill=hung)
        message = f"no answer within {self._seconds:g} s" if hung else f"the process died: {_ending(status)}"
        trace = self._complaints.read_text(errors="replace")[-3000:] if self._complaints.exists() else ""
        return {
            "outcome": "hang" if hung else "crash",
            "message": f"{message}\n{trace}",
            "place": place_in(trace),
            "seconds": took,
            "bytes": 0,
            "noise": [],
            "arcs": [],
        }

    def close(self, *, kill: bool = False) -> int:
        """End the process; returns its status."""
        if not self._pid:
            return 0
        if kill:
            os.kill(self._pid, signal.SIGKILL)
        os.close(self._requests)
        os.close(self._replies)
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        return status

    @property
    def _complaints(self) -> Path:
        return self._folder / "stderr.txt"

    def _start(self) -> None:
        to_child, requests = os.pipe()
        replies, from_child = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(requests)
                os.close(replies)
                serve(self._run, to_child, from_child, self._complaints, self._bound)
            finally:
                os._exit(70)
        os.close(to_child)
        os.close(from_child)
        self._pid, self._requests, self._replies, self._read, self._buffer = pid, requests, replies, 0, b""

    def _line(self, deadline: float) -> bytes | None:
        """The next line; empty when the process ended, None when time is up."""
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._replies], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            piece = os.read(self._replies, 1 << 16)
            if not piece:
                return b""
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def crowd() -> float:
    """How many times longer things take than on an idle machine: processes that want to run, a core (at least 1)."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"signal {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit status {os.waitstatus_to_exitcode(status)}"
