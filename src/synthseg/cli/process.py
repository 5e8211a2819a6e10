"""What a command that runs networks does before torch is imported: memory and threads of its own process."""

from __future__ import annotations

import os
import sys

# What the number of threads is called by those who start them: OpenMP (torch), and numpy's and scipy's OpenBLAS, MKL
# and Accelerate. They read it once, when they are loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def trust_installed_code_only() -> None:
    """Let no process that this command starts import from the working directory: it may hold anybody's files.

    ``python -m`` and multiprocessing's ``python -c`` put it first on the path: a ``torch.py`` among somebody's scans
    would be run by the first worker. For commands only; the environment holds for all that they start.
    """
    os.environ.setdefault("PYTHONSAFEPATH", "1")


def prepare_process(threads: int | None, device: str = "auto") -> None:
    """Call before anything heavy is imported; for commands only, because it holds for the whole process.

    ``threads`` bounds the libraries that come with numpy too (torch and OpenVINO are told by the segmenter); None
    leaves them all cores. Freed memory is kept where the networks run on the CPU: half of the processor time of a
    forward pass is page faults otherwise.
    """
    if threads is not None and "numpy" not in sys.modules:
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    if device in ("auto", "cpu"):
        from synthseg.allocator import keep_freed_memory

        # Unlike in training, huge pages only cost here: a pass ends before they are worth the zeros (measured: 1.5 of
        # 5.5 CPU seconds for a head, and 80 MB).
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "0")
        keep_freed_memory()
