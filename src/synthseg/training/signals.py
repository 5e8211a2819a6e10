"""Ctrl-C and SIGTERM as a wish to stop, not an end in the middle of a step. Standard library only."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopOnSignal:
    """Ctrl-C or SIGTERM asks for a checkpoint and a clean end; a second Ctrl-C interrupts at once.

    A second SIGTERM does not: schedulers send it to a process and again to its group, torchrun after a Ctrl-C.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        self.asked = any(outer.asked for outer in self._outer())
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        for outer in self._outer():  # a chain of runs ends with the run that was asked
            outer.asked = True

    def _outer(self) -> set[StopOnSignal]:
        """The one around this one, if any."""
        owners = {getattr(handler, "__self__", None) for handler in self._before.values()}
        return {owner for owner in owners if isinstance(owner, StopOnSignal)}
