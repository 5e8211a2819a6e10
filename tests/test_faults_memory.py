"""Limits on memory: a command ends with its results or with one sentence, whatever the limit. Never a traceback."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fault_cases import BANK, EVALUATE, SEGMENT, SHAPES, TRAIN, Case, assert_nothing_half_written
from fault_helpers import Commands, commands, leftovers, shim
from synthseg.cli.system import explained
from test_faults_kill import undisturbed

pytestmark = pytest.mark.skipif(shim() is None, reason="no C compiler, or no Linux")
# MiB beyond what the process has when the command begins.
LIMITS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 1024)
SELDOM = [pytest.param(case, marks=pytest.mark.exhaustive, id=case.name) for case in (BANK, EVALUATE, SHAPES)]
LIMIT = """
import os, resource
held = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGESIZE")
resource.setrlimit(resource.RLIMIT_AS, (held + {mib} * 2**20, -1))
"""


@pytest.fixture(scope="module")
def run() -> Iterator[Commands]:
    with commands() as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("case", [SEGMENT, TRAIN, *SELDOM], ids=lambda case: case.name)
def test_whatever_the_limit_a_command_ends_with_its_results_or_one_sentence(
    tmp_path: Path, run: Commands, case: Case
) -> None:
    given, out = tmp_path / "given", tmp_path / "out"
    _, wanted = undisturbed(run, case, given, out)
    codes = []
    for mib in LIMITS:
        ended = run.run(case.arguments(given, out), out, before=case.before + LIMIT.format(mib=mib))
        said = ended.out + ended.err
        assert ended.code in (0, 1), (mib, said)
        assert "Traceback" not in said, (mib, said)
        assert ended.code == 0 or " Fix: " in " ".join(said.split()), (mib, said)
        if out.exists():
            assert leftovers(out) == []
            assert_nothing_half_written(out, wanted, case)
            shutil.rmtree(out)
        codes.append(ended.code)
        assert "damaged" not in said  # nothing is wrong with a file that there is no memory for
    assert codes[0] == 1 or case is not SEGMENT  # the others can live of what has been freed before
    assert codes[-1] == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "memory: found more needed than there is. Fix: "),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), "allocate"),
        (ImportError("libx.so: failed to map segment from shared object"), "memory: found more needed"),
        (OSError(12, "Cannot allocate memory"), "memory: found more needed"),
        (OSError(28, "No space left on device", "/a/b"), "/a/b: found no way to write it (No space left on device)"),
        (PermissionError(13, "Permission denied", "/a/b"), "/a/b: found Permission denied. Fix: "),
    ],
)
def test_what_the_system_refuses_is_told_in_words(error: Exception, said: str) -> None:
    assert said in str(explained(error))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape mismatch"),
        ImportError("no module x"),
        OSError("odd"),
        KeyError(1),
        ImportError("libfoo.so: failed to map segment from shared object: Operation not permitted"),  # noexec
        ImportError("libgomp.so: cannot allocate memory in static TLS block"),
        RuntimeError("unable to mmap 7 bytes from file <x>: No such device (19)"),
    ],
)
def test_a_mistake_in_the_program_is_not_blamed_on_the_system(error: Exception) -> None:
    assert explained(error) is None


def test_words_in_a_files_name_are_none_of_the_systems() -> None:
    said = str(explained(FileNotFoundError(2, "No such file or directory", "/data/Out of Memory/a.nii")))
    assert said.startswith("/data/Out of Memory/a.nii: found No such file")
    assert "a file: found Stale" in str(explained(OSError(errno.ESTALE, "Stale file handle")))
