"""The wheel holds what the package reads: setuptools' globs against the files in src/synthseg."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "synthseg"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GLOBS: list[str] = PROJECT["tool"]["setuptools"]["package-data"]["synthseg"]
LEFT = (".pyc", ".tmp", ".orig", ".swp")


def _data_files() -> list[PurePosixPath]:
    """Everything below the package but Python and what tools leave behind, relative to it."""
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    kept = (path for path in files if path.suffix != ".py" and not path.name.endswith(LEFT))
    return sorted(PurePosixPath(path.relative_to(PACKAGE).as_posix()) for path in kept)


def _packed() -> set[PurePosixPath]:
    """What setuptools puts into the wheel: globs are relative to the package, ``*`` stays in a folder."""
    return {
        PurePosixPath(p.relative_to(PACKAGE).as_posix()) for glob in GLOBS for p in PACKAGE.glob(glob) if p.is_file()
    }


def test_every_data_file_of_the_package_is_in_the_wheel() -> None:
    assert set(_data_files()) <= _packed()


@pytest.mark.parametrize("glob", GLOBS)
def test_a_glob_of_the_package_data_finds_something(glob: str) -> None:
    assert any(path.is_file() for path in PACKAGE.glob(glob))


@pytest.mark.parametrize(
    "kind",
    [
        "report/templates/frame.html.j2",
        "report/static/page.css",
        "labels/protocols/synthseg-2.0.tsv",
        "inference/modes.toml",
        "generation/priors/t1.tsv",
        "weights/shipped/synthseg-2mm.safetensors",
        "py.typed",
    ],
)
def test_templates_pages_protocols_modes_priors_and_weights_are_in_the_wheel(kind: str) -> None:
    assert PurePosixPath(kind) in _packed()


def test_folders_with_python_are_packages_so_that_setuptools_finds_them() -> None:
    with_python = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in with_python if not (folder / "__init__.py").is_file()] == []


def test_bundled_code_of_others_comes_with_its_licence() -> None:
    static = PACKAGE / "report" / "static"
    for bundle in static.glob("*.min.js"):
        name = re.split(r"[-.]", bundle.name)[0]
        assert [
            path for path in static.glob(f"{name}-LICENSE*") if PurePosixPath("report/static", path.name) in _packed()
        ]


def test_the_installed_package_asks_for_what_pyproject_says() -> None:
    told = requires("synthseg") or []
    needed = {re.split(r"[^\w.-]", line)[0].lower() for line in told if "extra ==" not in line}
    assert needed == {re.split(r"[^\w.-]", line)[0].lower() for line in PROJECT["project"]["dependencies"]}
