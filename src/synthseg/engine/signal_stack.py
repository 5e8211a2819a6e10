"""Keeping the stack that signals are handled on, which OpenVINO's CPU plugin replaces by one that is too small.

Seen with OpenVINO 2026.4 on a processor with AVX-512: after the first compilation the thread's alternate signal stack
has 11,568 bytes. Python's handlers run on it, and Ctrl-C then ends in a segmentation fault instead of an interrupt.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """stack_t of sigaltstack(2) on Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def same_signal_stack() -> Iterator[None]:
    """Give this thread back, at the end, the alternate signal stack (or none) that it has now. Elsewhere than on Linux
    nothing is done."""
    sigaltstack = getattr(ctypes.CDLL(None), "sigaltstack", None) if sys.platform == "linux" else None
    if sigaltstack is None:
        yield
        return
    before = _Stack()
    known = sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            sigaltstack(ctypes.byref(before), None)
