"""Workers without networks, of the pool (speaks as synthseg.cohort.worker) and of Dask: a scan's name is its fate."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path


def listen(lines: list[str]) -> None:
    for line in sys.stdin:
        lines.append(line)
    os._exit(0)


def do(job: dict, place: Path) -> dict:
    subject, record = job["subject"], Path(job["files"]["record"])
    mark = place / f"{subject}.died"
    if subject.startswith("deadly") or (subject.startswith("once") and not mark.exists()):
        mark.touch()
        print("out of memory, says a library", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if subject.startswith("slow"):
        time.sleep(60)
    if subject.startswith("wait"):
        (place / f"{subject}.begun").touch()
        while not (place / "go").exists():
            time.sleep(0.01)
    with (place / "calls.txt").open("a") as file:
        file.write(f"{subject}\n")
    time.sleep(0.05)
    for path in job["files"].values():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("{}")
    found = Path(job["source"]).stat()
    told = {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": "x"}
    content = {"input": told, "volumes_mm3": {"total intracranial": float(len(subject))}, "record": str(record)}
    return {"subject": subject, "status": "done", "record": content, "worker": f"here:{os.getpid()}", "seconds": 0.05}


def act(_how: object, job: dict, _overwrite: bool) -> dict:
    """In place of segmenting: what happens to a scan is in its name."""
    subject, record = job["subject"], Path(job["files"]["record"])
    stamp = {"bytes": Path(job["source"]).stat().st_size, "mtime_ns": Path(job["source"]).stat().st_mtime_ns}
    content = {"input": {**stamp, "sha256": "x"}, "volumes_mm3": {"total intracranial": 1.0}}
    told = {"subject": subject, "status": "done", "record": content, "worker": f"here:{os.getpid()}"}
    if record.exists():  # a report that was lost with its worker; finished scans are skipped, as when segmenting
        return told | {"status": "skipped"}
    mark = record.with_name(f"{subject}.died")
    if subject.startswith("once") and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02)
    with record.with_name("calls.txt").open("a") as file:
        file.write(f"{subject}\n")
    for path in job["files"].values():
        Path(path).write_text("{}")
    return told


def main() -> None:
    if sys.argv[2:] == ["stillborn"]:
        sys.exit(3)
    alive = (Path(sys.argv[1]) / "alive.lock").open("a")
    fcntl.flock(alive, fcntl.LOCK_SH)  # let go by its end, however that comes
    lines: list[str] = []
    threading.Thread(target=listen, args=(lines,), daemon=True).start()
    while not lines:
        time.sleep(0.01)
    lines.pop(0)
    print(json.dumps({"ready": os.getpid()}), flush=True)
    while True:
        if lines:
            print(json.dumps({"report": do(json.loads(lines.pop(0))["job"], Path(sys.argv[1]))}), flush=True)
        time.sleep(0.005)


if __name__ == "__main__":
    main()
