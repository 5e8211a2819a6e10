"""The house rules a machine can check: who loads what, one caller of grid_sample, short files, documented functions.

The import directions between rooms are import-linter's (`make lint`); here is what its contracts cannot say.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "synthseg"
SOURCES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("nibabel", "scipy", "cc3d", "typer", "rich", "matplotlib")
DRAWS = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "bernoulli", "multinomial"}
DRAWS |= {"uniform_", "normal_", "bernoulli_", "random_"}
LONGEST_FILE = 450  # lines: more no longer reads in one sitting


def _protocol_methods() -> set[str]:
    """Methods that a Protocol of the package describes: its words hold for every class that keeps it."""
    nodes = [node for path in SOURCES for node in ast.parse(path.read_text(encoding="utf-8")).body]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    protocols = [node for node in classes if any("Protocol" in ast.unparse(base) for base in node.bases)]
    methods = [item for node in protocols for item in node.body if isinstance(item, ast.FunctionDef)]
    return {method.name for method in methods if ast.get_docstring(method)}


PROTOCOL_METHODS = _protocol_methods()


def _place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


IMPORT_ROOMS = """
import importlib, pkgutil
for room in {rooms}:
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__ if hasattr(package, "__path__") else [], room + "."):
        importlib.import_module(module.name)
"""


def loaded_after(script: str) -> set[str]:
    """Names in ``sys.modules`` of a fresh interpreter that ran ``script``."""
    report = "\nimport sys\nprint(*sys.modules)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script + report]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def loaded_by(*rooms: str) -> set[str]:
    """The same after importing every module of ``rooms``."""
    return loaded_after(IMPORT_ROOMS.format(rooms=rooms))


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("synthseg", cache_dir=None)


def test_the_training_path_loads_torch_numpy_and_safetensors_only() -> None:
    rooms = ("labels", "generation", "networks", "weights", "training")
    loaded = loaded_by(*(f"synthseg.{room}" for room in rooms))
    assert "torch" in loaded
    assert sorted(name for name in loaded if name.partition(".")[0] in HEAVY) == []


def test_the_grid_module_loads_no_readers() -> None:
    loaded = loaded_by("synthseg.volumes.grid")
    assert sorted(loaded & {"nibabel", "scipy", "synthseg.volumes.read"}) == []


def test_importing_the_package_loads_neither_torch_nor_readers() -> None:
    assert sorted(loaded_after("import synthseg") & {"torch", *HEAVY}) == []


@pytest.mark.parametrize("room", ["synthseg.labels", "synthseg.cli"])
def test_label_tables_and_commands_load_without_torch(room: str) -> None:
    loaded = loaded_by(room)
    assert room in loaded
    assert "torch" not in loaded


def test_inference_knows_neither_training_nor_generation(graph: grimp.ImportGraph) -> None:
    # Through any chain of imports, those inside functions included. The layers contract lets inference see generation.
    upstream = graph.find_upstream_modules("synthseg.inference", as_package=True)
    assert upstream, "the graph is empty: this test would prove nothing"
    strangers = ("synthseg.training", "synthseg.generation")
    assert sorted(name for name in upstream if name.startswith(strangers)) == []


def test_generation_and_networks_are_strangers(graph: grimp.ImportGraph) -> None:
    for room, stranger in (("generation", "networks"), ("networks", "generation")):
        upstream = graph.find_upstream_modules(f"synthseg.{room}", as_package=True)
        assert sorted(name for name in upstream if name.startswith(f"synthseg.{stranger}")) == []


def test_one_file_calls_grid_sample() -> None:
    # Its axis order and align_corners are easy to get wrong in a second place.
    callers = [_place(path) for path in SOURCES if _names(path) & {"grid_sample", "affine_grid"}]
    assert callers == ["volumes/grid.py"]


def test_every_draw_takes_an_explicit_generator() -> None:
    # A draw from a global stream makes a run depend on what else ran before, and a resumed run unlike a whole one.
    careless = [
        f"{_place(path)}:{node.lineno} {node.func.attr}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in DRAWS
        and not any(keyword.arg == "generator" for keyword in node.keywords)
    ]
    assert careless == []


@pytest.mark.parametrize("path", SOURCES, ids=_place)
def test_a_file_reads_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("path", SOURCES, ids=_place)
def test_public_functions_and_classes_say_what_they_do(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = [node for node in _public(tree) if not ast.get_docstring(node) and node.name not in PROTOCOL_METHODS]
    assert [f"{node.name} (line {node.lineno})" for node in silent] == []


def _names(path: Path) -> set[str]:
    """Every name and attribute a file uses (comments and docstrings do not count)."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return imported | attributes | {node.id for node in nodes if isinstance(node, ast.Name)}


def _public(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Public functions and classes of a module, and those classes' methods (not properties) of several statements."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            methods = node.body if isinstance(node, ast.ClassDef) else []
            yield from (item for item in methods if isinstance(item, ast.FunctionDef) and _is_worth_words(item))


def _is_worth_words(method: ast.FunctionDef) -> bool:
    is_property = any("property" in ast.unparse(decorator) for decorator in method.decorator_list)
    known = method.name.startswith("_") or method.name == "forward" or is_property  # what forward does, the class says
    return not known and len(method.body) > 1
