"""What a process costs: processor seconds, seconds waited, peak memory; and what it was measured on.

Every measurement is a process of its own, so that its peak is its own too. Nothing heavy is imported here: a process
begins with the memory its parent had, and the system counts that towards its peak.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PEAK_UNIT = 2**20 if sys.platform != "darwin" else 2**30  # of ru_maxrss, in GiB
TOLD = "result: "  # begins the line on which a measured process says what it found, as JSON
PACKAGES = ("synthseg", "torch", "openvino", "onnxruntime", "numpy", "scipy", "nibabel", "connected-components-3d")


@dataclass(frozen=True)
class Measured:
    """One process: user and system seconds of all its threads, seconds waited, largest resident size in GiB.

    ``load`` is what the machine was busy with just before, in processes waiting for a processor; ``said`` what the
    process printed about itself; ``failed`` why it did not end well.
    """

    cpu_s: float
    wall_s: float
    peak_gb: float
    load: float
    said: dict[str, Any] = field(default_factory=dict)
    failed: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    command: Sequence[str | Path], *, threads: int, settings: Mapping[str, str] | None = None, timeout_s: float = 1200
) -> Measured:
    """Run a command to its end.

    Args:
        threads: told to whatever library looks at the environment.
        settings: further environment variables.
        timeout_s: it is stopped after so long.
    Returns: its costs; a command that fails, or is stopped, says so in ``failed`` with its last line of complaint.
    """
    environment = {**os.environ, **thread_settings(threads), **(settings or {})}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH", "")]))
    load = os.getloadavg()[0]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        process = subprocess.Popen([str(word) for word in command], stdout=out, stderr=err, env=environment)
        try:
            code, used = _wait(process, began + timeout_s)
        except BaseException:  # Ctrl-C: nothing stays behind
            process.kill()
            raise
        wall = time.perf_counter() - began
        out.seek(0)
        err.seek(0)
        said, complaint = told(out.read()), err.read().strip()
    failed = "" if code == 0 else f"exit code {code}: {(complaint.splitlines() or ['no word'])[-1][:300]}"
    if code == 0 and wall > timeout_s:
        failed = f"stopped after {timeout_s:.0f} s"
    return Measured(used.ru_utime + used.ru_stime, wall, used.ru_maxrss / PEAK_UNIT, load, said, failed)


def _wait(process: subprocess.Popen[bytes], until: float) -> tuple[int, Any]:
    """Exit code and resource usage of a child, which is killed when its time is over."""
    pause = 0.005
    while True:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, used
        if time.perf_counter() > until:
            process.kill()
        time.sleep(pause)
        pause = min(pause * 1.2, 0.1)


def told(printed: str) -> dict[str, Any]:
    """What a measured process says of itself: its last line that begins with :data:`TOLD`."""
    lines = [line for line in printed.splitlines() if line.startswith(TOLD)]
    values: dict[str, Any] = json.loads(lines[-1].removeprefix(TOLD)) if lines else {}
    return values


def tell(**facts: Any) -> None:
    """Print what the parent is to read (:func:`told`)."""
    print(TOLD + json.dumps(facts), flush=True)


def used_so_far() -> tuple[float, float]:
    """Processor seconds of this process since it began, imports included, and its peak in GiB."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_maxrss / PEAK_UNIT


def thread_settings(threads: int) -> dict[str, str]:
    """Environment variables by which libraries are told how many threads to use."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    return dict.fromkeys(names, str(threads)) | {"TF_NUM_INTEROP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}


def machine() -> str:
    """Processor, cores and memory, in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{processor()}, {os.cpu_count()} logical cores, {memory:.0f} GB, {platform.system()}"


def processor() -> str:
    """The processor's name and those of its instructions that matter here."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    facts = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    flags = facts.get("flags", "").split()
    wide = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if name in flags]
    return " ".join([facts.get("model name") or platform.processor() or platform.machine(), *wide])


def versions() -> dict[str, str]:
    """Of Python and the packages that matter, where they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_state() -> str:
    """A fingerprint of the package, its weights and these benchmarks: results of one state are not another's."""
    digest = hashlib.sha256()
    for folder in (ROOT / "src" / "synthseg", ROOT / "benchmarks" / "inference"):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".toml", ".safetensors"):
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
