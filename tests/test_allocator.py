"""The allocator's settings, seen from outside: page faults of a process that allocates and frees large tensors."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

WORK = """
import ctypes, resource, sys
PR_SET_THP_DISABLE = 41  # linux/prctl.h: pages of 4 KiB only, so that a count means the same on every machine
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
from synthseg.allocator import keep_freed_memory
changed = keep_freed_memory() if sys.argv[1] == "keep" else None
import torch
from concurrent.futures import ThreadPoolExecutor
torch.set_num_threads(1)
def allocate(times):
    for _ in range(times):
        torch.ones(2**23)
where = ThreadPoolExecutor(1) if sys.argv[2] == "thread" else None
run = allocate if where is None else lambda times: where.submit(allocate, times).result()
def faults_of_ten():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run(10)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
# The heap grows at first, when a small block has settled between large ones: sooner or later, and more so in a thread.
print(changed, min(faults_of_ten() for _ in range(5)))
"""


def faults(mode: str, where: str = "main", **environment: str) -> tuple[str, int]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_", "THP_"))}
    result = subprocess.run(
        [sys.executable, "-c", WORK, mode, where],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    changed, count = result.stdout.split()
    return changed, int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
@pytest.mark.parametrize("where", ["main", "thread"])
def test_freed_memory_is_used_again_without_asking_the_system(where):
    changed, kept = faults("keep", where)
    if changed == "False":
        pytest.skip("another C library than glibc")
    _, plain = faults("plain", where)
    # Ten tensors of 32 MiB are 81,920 pages. Kept memory is not free of faults (the interpreter's own, or a tensor that
    # found its place taken by a small block and grew the heap once more), but most of the ten cost none.
    assert kept < 81_920 / 4 < 81_920 * 0.9 < plain


def test_a_users_own_settings_are_left_alone():
    assert faults("keep", MALLOC_ARENA_MAX="2")[0] == "False"
