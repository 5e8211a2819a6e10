"""What all tests share: the optional real data and one hypothesis profile."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from mri_synthseg_helpers import forget_originals, runner, use_small_network
from synthseg.cli import main
from synthseg.cli.original.parser import Options
from volume_files import make_head

# The same examples in every run, so that a failure is the change's that brought it; `HYPOTHESIS_PROFILE=explore` draws
# new ones, ten times as many unless a test says how many. No deadline: torch's first call alone breaks it.
settings.register_profile("synthseg", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "synthseg"))


def shared_dir() -> Path | None:
    """The folder with real scans and label maps: $SYNTHSEG_SHARED, or ``shared`` beside the repository."""
    candidate = Path(os.environ.get("SYNTHSEG_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    return candidate if (candidate / "data").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real data; tests that ask for it are skipped where there is none."""
    folder = shared_dir()
    if folder is None:
        pytest.skip("no real data: set SYNTHSEG_SHARED to the folder that holds data/")
    return folder


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also in a background job, which a shell starts with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def head() -> np.ndarray:
    """[12, 13, 14] int16 with values to tell voxels apart by."""
    return make_head()


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `synthseg ARGUMENTS`: (exit code, standard output, standard error on one line). Never a traceback."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([*map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(exit_.value.code or 0), out, " ".join(err.split())

    return run


@pytest.fixture
def no_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the tests run, no weights of the original's are found unless a test puts them there."""
    forget_originals(monkeypatch)


@pytest.fixture
def run_mri(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `mri_synthseg ARGUMENTS`: exit code, standard output, standard error."""
    return runner(capsys)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """Let `mri_synthseg` use a tiny network; what it was asked for is in the list."""
    return use_small_network(monkeypatch)


@pytest.fixture
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are not wrapped."""
    monkeypatch.setenv("COLUMNS", "250")
