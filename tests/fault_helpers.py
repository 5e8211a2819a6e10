"""A command run again and again in forks of one process, each killed at another write or left without space there.

The counting and striking is done by ``fault_disk.c``, preloaded into the process. ``python fault_helpers.py`` is that
process: everything a command needs is imported once, and each run is a fork of it that takes a fraction of a second.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

MODES = {"none": 0, "count": 1, "kill": 2, "full": 3, "once": 4}
KILLED = -9
SOURCE = Path(__file__).with_name("fault_disk.c")
PARTS = (".part", ".lock", "-journal")  # endings of files that are no results: what a killed run may leave


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code (negative: the signal), what it printed, and its operations on the folder."""

    code: int
    out: str
    err: str
    operations: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """Standard error on one line."""
        return " ".join(self.err.split())


@lru_cache(maxsize=1)
def shim() -> Path | None:
    """The compiled ``fault_disk.c``; None where there is no C compiler or no Linux."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    target = Path(tempfile.mkdtemp(prefix="fault-")) / "fault_disk.so"
    made = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(target), str(SOURCE), "-ldl"], capture_output=True, check=False
    )
    return target if made.returncode == 0 else None


class Commands:
    """Runs commands of synthseg in forks of a process that has everything imported.

    Args:
        prepared: source of Python that is run once in the process, before anything is forked.
    """

    def __init__(self, prepared: str = "") -> None:
        library = shim()
        assert library is not None
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment = {**os.environ, **threads, "LD_PRELOAD": str(library), "FAULT_LIBRARY": str(library)}
        environment["PYTHONPATH"] = os.pathsep.join([str(SOURCE.parent), *sys.path[1:]])
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        self._ask({"prepared": prepared})

    def run(
        self,
        arguments: Sequence[object],
        folder: Path,
        *,
        mode: str = "none",
        at: int = 0,
        before: str = "",
        limit_s: int = 120,
        environment: dict[str, str] | None = None,
    ) -> Ended:
        """One run of ``synthseg ARGUMENTS``, or of Python's ``before`` alone where there are no arguments.

        Args:
            folder: operations below it are counted, and one of them is struck.
            mode: "count"; "kill" at operation ``at``; "full": no space from it on; "once": no space for it alone.
            before: Python that the fork runs first.
            environment: of the fork.
        """
        asked = {"arguments": [*map(str, arguments)], "folder": str(folder), "mode": mode, "at": at, "before": before}
        found = self._ask({**asked, "limit_s": limit_s, "environment": environment or {}})
        return Ended(found["code"], found["out"], found["err"], tuple(found["operations"]))

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=30)

    def _ask(self, what: dict[str, Any]) -> dict[str, Any]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(what) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the process that forks has died"
        found: dict[str, Any] = json.loads(answer)
        return found


@contextmanager
def commands(prepared: str = "") -> Iterator[Commands]:
    """A :class:`Commands` that ends with the block."""
    running = Commands(prepared)
    try:
        yield running
    finally:
        running.close()


def visible(folder: Path) -> dict[str, bytes]:
    """All files below a folder that a user would take for results, by relative name."""
    return {name: path.read_bytes() for name, path in _files(folder) if not _hidden(name)}


def leftovers(folder: Path) -> list[str]:
    """Names of files below a folder that are no results: half-written, locks."""
    return sorted(name for name, _ in _files(folder) if _hidden(name))


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/")) or name.endswith(PARTS)


def sample(total: int, *, most: int) -> list[int]:
    """Numbers from 1 to ``total``, evenly spread, the first and last among them; all if there are few."""
    if total <= most:
        return list(range(1, total + 1))
    return sorted({1 + round(i * (total - 1) / (most - 1)) for i in range(most)})


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    library = ctypes.CDLL(os.environ.pop("FAULT_LIBRARY"))
    for line in sys.stdin:
        asked = json.loads(line)
        if "prepared" in asked:
            exec(_IMPORTS + asked["prepared"], {})
            found: dict[str, Any] = {}
        else:
            found = _in_a_fork(library, asked)
        answers.write(json.dumps(found) + "\n")
        answers.flush()


# What commands import when they run: here, so that no fork has to.
_IMPORTS = """
import gc, importlib
import torch
torch.set_num_threads(1)
for name in (
    "numpy nibabel scipy.ndimage cc3d h5py pyarrow.parquet pyarrow.pandas_compat pandas rich.console rich.table "
    "typer._adapters torch._dynamo synthseg.cli "
    "synthseg.inference.batch synthseg.training.loop synthseg.cohort.coordinate "
    "synthseg.cohort.pool synthseg.cohort.inputs synthseg.cohort.naming synthseg.evaluation synthseg.generation.pack "
    "synthseg.anatomies.shapes.files synthseg.allocator multiprocessing.queues "
    "synthseg.weights.importing synthseg.metrics synthseg.report.overlay cohort_run_helpers"
).split():
    try:
        importlib.import_module(name)
    except ImportError:  # an optional package
        pass
from synthseg.cli import main
try:
    main(["--version"])
except SystemExit:
    pass
gc.freeze()
"""


def _in_a_fork(library: Any, asked: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="fault-run-") as place:
        told = {name: Path(place, name) for name in ("out", "err", "trace")}
        child = os.fork()
        if child == 0:
            _child(library, asked, told)
        _, status = os.waitpid(child, 0)
        lines = told["trace"].read_text().splitlines() if told["trace"].exists() else []
        operations = [line.split(" ", 1)[1] for line in lines]
        texts = {name: told[name].read_text(errors="replace") for name in ("out", "err")}
        return {"code": os.waitstatus_to_exitcode(status), "operations": operations, **texts}


def _child(library: Any, asked: dict[str, Any], told: dict[str, Path]) -> None:
    """Never returns."""
    import signal

    signal.alarm(asked["limit_s"])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(told[name], os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 0
    try:
        os.environ.update(asked["environment"])
        exec(asked["before"], {})
        arm = library.fault_arm
        arm(
            asked["folder"].encode(), MODES[asked["mode"]], ctypes.c_long(asked["at"]), str(told["trace"]).encode(), b""
        )
        if asked["arguments"]:
            from synthseg.cli import main

            main(asked["arguments"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(bool(error.code))
    except BaseException:
        traceback.print_exc()
        code = 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
