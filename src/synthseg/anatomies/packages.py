"""Packages of the extra ``[sampling]``, asked for before the work."""

from __future__ import annotations

from importlib.util import find_spec

from synthseg.errors import UsageError

_NAMES = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


def require_package(module: str, what: str) -> None:
    """Raise UsageError, naming ``what`` needs it, where a package is not installed."""
    if find_spec(module) is None:
        raise UsageError(what, found=f"no {_NAMES[module]}", fix='install it with: pip install "synthseg[sampling]"')
