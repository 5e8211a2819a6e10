"""Which packages are there, and whether those that are needed load. Standard library only."""

from __future__ import annotations

import importlib
import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("synthseg", "torch", "numpy", "scipy", "nibabel", "openvino", "onnx", "onnxruntime")
NEEDED = {  # what is imported -> what is installed
    "torch": "torch",
    "numpy": "numpy",
    "scipy": "scipy",
    "nibabel": "nibabel",
    "safetensors": "safetensors",
    "cc3d": "connected-components-3d",
}


def package_versions() -> dict[str, str | None]:
    """Versions of Python and of every package that may matter; None for one that is not installed. Loads none."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def broken_packages() -> list[str]:
    """A sentence on each package that segmenting needs and that does not load: missing, or damaged."""
    problems = []
    for module, package in NEEDED.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # a binary package can fail to load in any way
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            problems.append(f"package {package}: found no way to load it ({reason}). Fix: pip install {package}")
    return problems
