"""How far a cohort is: numbers, and those who tell of them."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from synthseg.cohort.ledger import State, now
from synthseg.cohort.work import Job, Report

WINDOW = 200  # scans that the rate is taken over: it follows workers that come and go
LINE_EVERY_S = 30.0


@dataclass
class Tally:
    """Scans of a run, counted as they finish.

    Attributes:
        total: of the run; ``finished`` and ``failed_before`` needed no work.
        clock: seconds, for tests.
    """

    total: int
    finished: int = 0
    failed_before: int = 0
    done: int = 0
    failed: int = 0
    clock: Callable[[], float] = time.monotonic
    begun: float = 0.0
    _times: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def __post_init__(self) -> None:
        self.begun = self.clock()

    @property
    def left(self) -> int:
        return self.total - self.finished - self.failed_before - self.done - self.failed

    def count(self, state: State) -> None:
        """A report has come in; scans that wait again are not finished."""
        if state in ("done", "failed"):
            self._times.append(self.clock())
            self.done += state == "done"
            self.failed += state == "failed"

    @property
    def rate(self) -> float | None:
        """Scans a second over the last ``WINDOW``; None before the first."""
        if not self._times:
            return None
        whole = len(self._times) < WINDOW
        since, n = (self.begun, len(self._times)) if whole else (self._times[0], WINDOW - 1)
        spent = self.clock() - since
        return n / spent if spent > 0 else None

    @property
    def remaining_s(self) -> float | None:
        rate = self.rate
        return None if rate is None else self.left / rate

    @property
    def sentence(self) -> str:
        """E.g. "120 of 1000 scans, 3 failed; 85 an hour, about 10 h 20 min left"."""
        over = self.total - self.left
        text = f"{over} of {self.total} scans"
        failed = self.failed + self.failed_before
        text += f", {failed} failed" if failed else ""
        rate, remaining = self.rate, self.remaining_s
        if rate is None or remaining is None or not self.left:
            return text
        return f"{text}; {_speed(rate)}, about {duration(remaining)} left"


class Listener(Protocol):
    """Hears of a run, from the coordinator's thread."""

    def planned(self, tally: Tally, explained: Sequence[str]) -> None: ...
    def note(self, text: str) -> None: ...
    def begun(self, job: Job) -> None: ...
    def finished(self, report: Report, state: State, tally: Tally) -> None: ...
    def tick(self, tally: Tally) -> None: ...
    def interrupted(self, in_hand: int) -> None: ...


class Silent:
    """A listener that says nothing."""

    def planned(self, tally: Tally, explained: Sequence[str]) -> None: ...
    def note(self, text: str) -> None: ...
    def begun(self, job: Job) -> None: ...
    def finished(self, report: Report, state: State, tally: Tally) -> None: ...
    def tick(self, tally: Tally) -> None: ...
    def interrupted(self, in_hand: int) -> None: ...


class Lines:
    """Sentences for a log: what is planned, each failure, and every half minute how far it is.

    Args:
        say: takes a line.
        every_s: between two lines on how far it is; 0 says it after every scan.
    """

    def __init__(self, say: Callable[[str], object], every_s: float = LINE_EVERY_S) -> None:
        self.say, self.every_s = say, every_s
        self._due = time.monotonic() + every_s

    def planned(self, tally: Tally, explained: Sequence[str]) -> None:
        """How much there is to do, and why scans are done again."""
        for line in explained:
            self.note(line)
        self.say(f"{tally.left} of {tally.total} scans to do")

    def note(self, text: str) -> None:
        self.say(f"note: {text}")

    def begun(self, job: Job) -> None: ...

    def finished(self, report: Report, state: State, tally: Tally) -> None:
        """What became of a scan that was not simply done, and now and then how far the run is."""
        if state != "done":
            self.say(f"{'failed' if state == 'failed' else 'lost, tried again later'}: {report.message}")
        self._line(tally)

    def tick(self, tally: Tally) -> None:
        if self.every_s:
            self._line(tally)

    def _line(self, tally: Tally) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self.every_s
            self.say(tally.sentence)

    def interrupted(self, in_hand: int) -> None:
        self.say(f"interrupted: {in_hand} scan(s) in hand are finished first; once more stops at once")


class JsonLines:
    """Everything as JSON, one object a line: ``event``, ``time`` and what belongs to it. Args: as :class:`Lines`."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self.say = say

    def planned(self, tally: Tally, explained: Sequence[str]) -> None:
        self._say("planned", **_numbers(tally), explained=list(explained))

    def note(self, text: str) -> None:
        self._say("note", message=text)

    def begun(self, job: Job) -> None:
        self._say("begun", subject=job.subject, source=str(job.source))

    def finished(self, report: Report, state: State, tally: Tally) -> None:
        """What became of a scan, with the run's rate and remaining time."""
        rate, remaining = tally.rate, tally.remaining_s
        self._say(
            "finished",
            subject=report.subject,
            state=state,
            status=report.status,
            error_kind=report.kind,
            message=report.message,
            worker=report.worker,
            seconds=report.seconds,
            **_numbers(tally),
            scans_per_hour=None if rate is None else round(rate * 3600, 2),
            remaining_s=None if remaining is None else round(remaining),
        )

    def tick(self, tally: Tally) -> None: ...

    def interrupted(self, in_hand: int) -> None:
        self._say("interrupted", in_hand=in_hand)

    def _say(self, event: str, **what: Any) -> None:
        self.say(json.dumps({"event": event, "time": now(), **what}))


def _numbers(tally: Tally) -> dict[str, int]:
    failed = tally.failed + tally.failed_before
    return {
        "total": tally.total,
        "done": tally.done,
        "finished_before": tally.finished,
        "failed": failed,
        "left": tally.left,
    }


def duration(seconds: float) -> str:
    """In the two largest units that matter: "40 s", "12 min", "3 h 20 min", "2 d 4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def _speed(rate: float) -> str:
    if rate >= 1:
        return f"{rate:.1f} a second"
    if rate * 60 >= 1:
        return f"{rate * 60:.1f} a minute"
    return f"{rate * 3600:.1f} an hour"
