"""One process of the local pool: ``python -m synthseg.cohort.worker``. Reads jobs, answers with reports.

Lines of JSON: how to work comes first on the standard input, then one job a line; ``{"ready": ...}`` or
``{"error": ...}`` is the first answer, then one report a line. What libraries print goes to the standard error. When
the standard input ends, whoever hands out the work is gone or wants no more: the process ends at once, also in the
middle of a scan, of which nothing is left but what was whole.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from dataclasses import asdict
from typing import Any, TextIO

from synthseg.errors import SynthsegError


def main() -> None:
    """Take jobs from standard input line by line, and answer each on standard output, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal: the scan in hand is finished
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    how = json.loads(lines.get())
    if str(how["device"]) in ("auto", "cpu"):
        from synthseg.allocator import keep_freed_memory

        keep_freed_memory()  # as `synthseg segment` does
    from synthseg.cohort.work import Job, Settings, Workman, refused

    try:
        settings = Settings.from_dict(how["settings"])
        workman = Workman(settings, digest=how["digest"], device=how["device"], threads=how["threads"])
    except SynthsegError as error:
        told = {"subject": error.subject, "found": error.found, "fix": error.fix, "exit_code": error.exit_code}
        _say(answers, {"error": told})
        return
    _say(answers, {"ready": os.getpid()})
    while True:
        asked = json.loads(lines.get())
        job, started = Job.from_dict(asked["job"]), time.time()
        try:
            report = workman.do(job, overwrite=asked["overwrite"])
        except Exception as error:  # a scan's failure is a report already; this is e.g. a folder that is read-only
            report = refused(job.subject, error, started)
        _say(answers, {"report": asdict(report)})


def _listen(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def _say(answers: TextIO, what: dict[str, Any]) -> None:
    try:
        answers.write(json.dumps(what) + "\n")
        answers.flush()
    except BrokenPipeError:
        os._exit(1)


if __name__ == "__main__":
    main()
