"""The process that reads mutants: limits, the coverage it reports, and what it makes of a reader's answer.

Coverage is taken with ``sys.settrace``: arcs between lines of our own files only, other frames are left untraced.
Atheris keeps everything in one process, where a crash or an endless loop in HDF5 ends the run, and instruments every
library; ``coverage`` has no cheap question "anything new since the last file?"; ``sys.monitoring`` begins with Python
3.12.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import synthseg
from synthseg.errors import SynthsegError

ROOT = str(Path(synthseg.__file__).parent) + os.sep
TOLD_AFTER = 4.0  # seconds: where a reader is then, for the note on a file that is never read to its end
LONGEST_MESSAGE = 2000  # characters: more is no clear sentence
# What numpy and torch say, and we. HDF5 asks for what a file states, takes a refusal and goes on: of it, only what was
# used counts.
_MEMORY = re.compile(r"out of memory|unable to allocate|can't allocate memory|there is memory for", re.IGNORECASE)


class Arcs:
    """Arcs between lines of the package that ran: :meth:`take` gives those not given before."""

    def __init__(self, root: str = ROOT) -> None:
        self._root = root
        self._ours: dict[CodeType, str | None] = {}
        self._seen: set[tuple[str, int, int]] = set()
        self._new: list[tuple[str, int, int]] = []

    def take(self) -> list[str]:
        """Arcs that are new since the last call."""
        new, self._new = self._new, []
        return [f"{name}:{before}-{line}" for name, before, line in new]

    def trace(self, frame: FrameType, _event: str, _arg: Any) -> Callable[..., Any] | None:
        """For ``sys.settrace``."""
        code = frame.f_code
        if code not in self._ours:
            name = code.co_filename
            self._ours[code] = name.removeprefix(self._root) if name.startswith(self._root) else None
        name_or_none = self._ours[code]
        return None if name_or_none is None else self._local(name_or_none, code.co_firstlineno)

    def _local(self, name: str, before: int) -> Callable[..., Any]:
        seen = self._seen

        def local(frame: FrameType, event: str, _arg: Any) -> Callable[..., Any]:
            nonlocal before
            if event == "line":
                arc = (name, before, before := frame.f_lineno)
                if arc not in seen:
                    seen.add(arc)
                    self._new.append(arc)
            return local

        return local


def serve(run: Callable[[Path], object], requests: int, replies: int, complaints: Path, bound: int) -> None:
    """Answer requests (a JSON line with a path each) until there are no more. Never returns.

    Args:
        run: the reader.
        requests, replies: file descriptors of the pipes.
        complaints: where what is printed to standard error goes, traces of crashes too.
        bound: bytes of address space a file may take beyond what the process has at the start.
    """
    _redirect(complaints)
    arcs = Arcs()
    limit = _address_space() + bound
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (bound, bound))
    with os.fdopen(requests, "r", encoding="utf-8") as lines, os.fdopen(replies, "w", encoding="utf-8") as answers:
        for line in lines:
            answer = examine(run, Path(json.loads(line)), arcs, bound)
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    os._exit(0)


def examine(run: Callable[[Path], object], path: Path, arcs: Arcs, bound: int) -> dict[str, Any]:
    """Read one file: how it ended (accepted, refused, unclear, error, memory), what was said, what it cost."""
    _reset_peak()
    before = _resident("VmRSS")
    complaints_before = _said()
    error: BaseException | None = None
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        start = time.monotonic()
        faulthandler.dump_traceback_later(TOLD_AFTER, file=2)
        sys.settrace(arcs.trace)
        try:
            run(path)
        except BaseException as caught:
            error = caught
        finally:
            sys.settrace(None)
            faulthandler.cancel_dump_traceback_later()
        seconds = time.monotonic() - start
    outcome, message, place = judge(error, path)
    used = max(0, _resident("VmHWM") - before)
    if used > bound:
        outcome, message = "memory", f"{used:,} bytes were used. {message}"
    noise = [f"{w.category.__name__}: {w.message}"[:300] for w in warned if w.category is not ResourceWarning]
    if _said() > complaints_before:
        noise.append("text on standard error")
    return {
        "outcome": outcome,
        "message": message,
        "place": place,
        "seconds": seconds,
        "bytes": used,
        "noise": noise,
        "arcs": arcs.take(),
    }


def judge(error: BaseException | None, path: Path) -> tuple[str, str, str]:
    """What a reader's answer counts as, its message, and where in our code it arose."""
    if error is None:
        return "accepted", "", ""
    place, chain = _where(error), list(_chain(error))
    if any(text.startswith(("MemoryError", "_ArrayMemoryError")) or _MEMORY.search(text) for text in chain):
        return "memory", " <- ".join(chain)[:LONGEST_MESSAGE], place
    if not isinstance(error, SynthsegError):
        return "error", "".join(traceback.format_exception(error))[-4000:], place
    text = str(error)
    if len(text.splitlines()) != 1 or not text.isprintable() or len(text) > LONGEST_MESSAGE or not names(text, path):
        return "unclear", text[: 2 * LONGEST_MESSAGE], place
    return "refused", text, place


def _chain(error: BaseException | None) -> Iterator[str]:
    """An error and what led to it."""
    for _ in range(20):
        if error is None:
            return
        yield f"{type(error).__name__}: {error}"
        error = error.__cause__ or error.__context__


def names(text: str, path: Path) -> bool:
    """Whether a message names the file; of a folder, the folder or any file in it. Control characters are escaped."""
    inside = [file.name for file in path.rglob("*")] if path.is_dir() and not path.is_symlink() else []
    return any(_printable(name) in text or repr(name)[1:-1] in text for name in [path.name, *inside])


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _where(error: BaseException) -> str:
    """File, line and function of the deepest frame in our package."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(ROOT)]
    deepest = frames[-1] if frames else None
    return f"{deepest.filename.removeprefix(ROOT)}:{deepest.lineno} {deepest.name}" if deepest else ""


def place_in(trace: str) -> str:
    """The deepest frame of ours in what ``faulthandler`` printed (most recent call first)."""
    match = re.search(rf'File "{re.escape(ROOT)}([^"]+)", line (\d+) in (\w+)', trace)
    return f"{match[1]}:{match[2]} {match[3]}" if match else ""


def _redirect(complaints: Path) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    said = os.open(complaints, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    for target, source in ((0, nowhere), (1, nowhere), (2, said)):
        os.dup2(source, target)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (for the life of the process)
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    faulthandler.enable(sys.stderr)


def _said() -> int:
    return os.fstat(2).st_size


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again


def _resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0
