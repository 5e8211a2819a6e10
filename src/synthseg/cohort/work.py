"""One scan's work, as plain values that cross any border: what is to be done, and what became of it."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from synthseg.configs import config_from_dict, config_to_dict
from synthseg.errors import UsageError
from synthseg.inference.outputs import Outputs

if TYPE_CHECKING:
    from synthseg.inference import Segmenter

LATER = "dicom_seg"  # of a job's files the kind that `Settings.after` writes, and not the segmentation itself
Status = Literal["done", "skipped", "failed", "lost"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a worker needs to know to segment scans of this cohort as every other worker does.

    Attributes:
        weights: none are the mode's own; several are merged by the rule ``merge``.
        mode, parcels, quality, protocol, ct, precision, percentiles, merge: as ``synthseg segment`` has them; None is
            the mode's own, and for quality: where there is a network for it.
        model_dir: where weights are looked for first.
        device, backend, memory: what carries the networks out; no part of what the results hold.
        outputs: what is written for every scan.
        overlay_writer: "module:function" that draws ``(scan, labels, structures, path)``; needed for overlays.
        after: "module:function" that is called with each :class:`Job` in the worker once its files are there, also
            when they were there before; it must not mind being called again.
    """

    weights: tuple[str, ...] = ()
    mode: str = "default"
    parcels: bool = False
    quality: bool | None = None
    protocol: str | None = None
    ct: bool | None = None
    precision: str | None = None
    percentiles: tuple[float, float] | None = None
    merge: str | None = None
    model_dir: str | None = None
    device: str = "auto"
    backend: str = "auto"
    memory: str | None = None
    outputs: Outputs = field(default_factory=Outputs)
    overlay_writer: str | None = None
    after: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return config_to_dict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any], *, where: str = "settings") -> Settings:
        """The inverse of :meth:`to_dict`. Raises: ConfigError for values that are no such settings."""
        return config_from_dict(Settings, values, where=where)


@dataclass(frozen=True)
class Job:
    """One scan of a cohort.

    Attributes:
        source: the scan's file.
        subject: the scan's name in ledger and tables, like no other in the cohort.
        files: every file it becomes, by kind, as :func:`synthseg.inference.outputs.output_files` calls them, and
            "dicom_seg" (:data:`LATER`) where there shall be one.
        entities: what else is known of the scan, e.g. the BIDS entities ``{"sub": "01", "ses": "2"}``; columns of the
            cohort's table.
    """

    source: Path
    subject: str
    files: Mapping[str, Path]
    entities: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As values that JSON can hold."""
        files = {kind: str(path) for kind, path in self.files.items()}
        return {"source": str(self.source), "subject": self.subject, "files": files, "entities": dict(self.entities)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Job:
        """The job that :meth:`to_dict` wrote."""
        files = {kind: Path(path) for kind, path in values["files"].items()}
        return Job(Path(values["source"]), values["subject"], files, values["entities"])


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of one scan in a worker's hands.

    Attributes:
        status: "done" now, "skipped" because its files and record already hold, "failed" by itself, or "lost" with the
            worker: then another worker may have more luck.
        kind, message: of a failure: the error's class, and the sentence that names scan, finding and fix.
        record: what the file beside the results says (``inference/record.py``); empty for a failure.
        worker: machine and process.
        started: seconds since the epoch; ``seconds``: spent on it.
    """

    subject: str
    status: Status
    kind: str = ""
    message: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    worker: str = ""
    started: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Described:
    """What settings mean once the weights are known.

    Attributes:
        settings: all that decides what a scan's files hold: ``inference.record.settings_of`` and our own version.
        digest: of them, as JSON; two equal digests give equal results.
    """

    settings: dict[str, Any]
    digest: str


def load_segmenter(settings: Settings, *, device: str | None = None, threads: int | None = None) -> Segmenter:
    """The networks. ``device`` instead of the settings' own. Raises: as :class:`synthseg.inference.Segmenter`."""
    from synthseg.inference import Segmenter
    from synthseg.inference.config import check_merge
    from synthseg.inference.modes import mode_config
    from synthseg.weights.places import use_model_dir

    use_model_dir(Path(settings.model_dir) if settings.model_dir else None)
    config = mode_config(settings.mode)
    if settings.percentiles is not None:
        config = replace(config, percentiles=settings.percentiles)
    if settings.merge is not None:
        config = replace(config, merge=check_merge(settings.merge))
    return Segmenter(
        settings.weights[0] if len(settings.weights) == 1 else list(settings.weights) or None,
        settings.mode,
        config=config,
        parcels=settings.parcels,
        quality=settings.quality,
        protocol=settings.protocol,
        ct=settings.ct,
        device=device or settings.device,
        threads=threads,
        backend=settings.backend,
        precision=settings.precision,
        memory=settings.memory,
    )


def describe(segmenter: Segmenter, outputs: Outputs) -> Described:
    """What every worker must agree on. Raises: UsageError for a structure that the weights do not know."""
    from synthseg.inference.record import settings_of, versions
    from synthseg.inference.structures import find_structures

    find_structures(outputs.structures, segmenter.structures)
    # Through JSON, as it is compared with what a file said: tuples become lists.
    settings = json.loads(json.dumps(settings_of(segmenter, outputs) | {"synthseg": dict(versions())["synthseg"]}))
    text = json.dumps(settings, sort_keys=True)
    return Described(settings, hashlib.sha256(text.encode()).hexdigest()[:16])


class Workman:
    """Segments one scan after another with networks that are loaded once.

    Args:
        digest: of the settings that the whole cohort is segmented with; None takes what comes.
    Raises: UsageError if the weights or the version here give another digest; what loading weights raises.
    """

    def __init__(
        self, settings: Settings, *, digest: str | None = None, device: str | None = None, threads: int | None = None
    ) -> None:
        self.settings = settings
        self.segmenter = load_segmenter(settings, device=device, threads=threads)
        self.overlay = named_function(settings.overlay_writer)
        self.after = named_function(settings.after)
        found = describe(self.segmenter, settings.outputs).digest
        if digest is not None and found != digest:
            fix = "install the same synthseg and the same weights on every machine that works on this cohort"
            raise UsageError(worker_name(), found=f"other weights or another version ({found}, not {digest})", fix=fix)

    def do(self, job: Job, *, overwrite: bool = False) -> Report:
        """Segment one scan and write its files, unless they are there already. Failures are reports, not errors."""
        from synthseg.cohort.ages import age_of
        from synthseg.inference import BatchOptions, run_batch
        from synthseg.inference import Job as Scan

        started, clock = time.time(), time.perf_counter()
        files = {kind: path for kind, path in job.files.items() if kind != LATER}
        scan = Scan(job.source, job.subject, files)
        options = BatchOptions(overwrite=overwrite, overlay=self.overlay, overlap=False, age_of=age_of)
        result = run_batch(self.segmenter, [scan], self.settings.outputs, options)
        if result.interrupted:
            raise KeyboardInterrupt
        outcome = result.outcomes[0]
        report = Report(
            subject=job.subject, status=outcome.status, message=outcome.message, worker=worker_name(), started=started
        )
        if outcome.error is not None:
            report = replace(report, kind=type(outcome.error).__name__)
        else:
            report = self._finished(job, report)
        return replace(report, seconds=round(time.perf_counter() - clock, 3))

    def _finished(self, job: Job, report: Report) -> Report:
        from synthseg.inference.record import read_record

        record = read_record(job.files["record"])
        if record is None:
            found = "no readable record of a scan that was just finished"
            error = UsageError(job.files["record"], found=found, fix="check the disk, and that no other run deletes it")
            return replace(report, status="failed", kind="UsageError", message=str(error))
        if self.after is not None:
            try:
                self.after(job)
            except Exception as error:
                return replace(report, status="failed", kind=type(error).__name__, message=str(error))
        return replace(report, record=record)


def named_function(name: str | None) -> Callable[..., Any] | None:
    """What "module:function" names; None for None. Raises: UsageError for a name that leads nowhere."""
    if name is None:
        return None
    module, _, function = name.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        fix = "name it module:function, of an installed module"
        raise UsageError(name, found=f"no such function ({error})", fix=fix) from error
    return found


def worker_name() -> str:
    """Machine and process, e.g. "node7:4711"."""
    return f"{socket.gethostname()}:{os.getpid()}"


def refused(subject: str, error: BaseException, started: float) -> Report:
    """The report of a scan that failed outside of :meth:`Workman.do`."""
    return Report(
        subject=subject,
        status="failed",
        kind=type(error).__name__,
        message=str(error),
        worker=worker_name(),
        started=started,
    )
