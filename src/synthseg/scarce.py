"""Telling that memory has run out from anything else that can be wrong. Standard library only."""

from __future__ import annotations

import errno

MORE_MEMORY = "close other programs, lift the limit (ulimit -v, the job's memory), or use a machine with more memory"
# How torch, safetensors, OpenBLAS, the dynamic linker and CUDA say it.
_SIGNS = (
    "out of memory",
    "not enough memory",
    "allocate memory",
    "failed to map segment",
    "std::bad_alloc",
    "bad allocation",
    "can't start new thread",
    "unable to mmap",
)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, by its kind or in the words of whoever raised it."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return any(sign in str(error).lower() for sign in _SIGNS)
