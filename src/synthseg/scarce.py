"""Telling that memory has run out from anything else that can be wrong. Standard library only."""

from __future__ import annotations

import errno

MORE_MEMORY = "close other programs, lift the limit (ulimit -v, the job's memory), or use a machine with more memory"
# What is said in such words of a disk that maps no files or runs none, and of a linker's fixed table.
_OTHERS = ("operation not permitted", "no such device", "static tls")
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
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    said = str(error).lower()
    return any(sign in said for sign in _SIGNS) and not any(other in said for other in _OTHERS)
