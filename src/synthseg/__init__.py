"""synthseg: contrast-agnostic segmentation of brain scans.

``synthseg.segment(scan)`` for one scan, ``synthseg.Segmenter`` for many; ``synthseg.GenerativeModel`` and
``synthseg.train`` for training. Names are imported on first use: ``import synthseg`` loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synthseg.generation import GenerativeModel
    from synthseg.inference import Segmenter, segment
    from synthseg.training import train

    __version__: str

__all__ = ["GenerativeModel", "Segmenter", "__version__", "segment", "train"]

_HOME = {
    "GenerativeModel": "synthseg.generation",
    "Segmenter": "synthseg.inference",
    "segment": "synthseg.inference",
    "train": "synthseg.training",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("synthseg")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
