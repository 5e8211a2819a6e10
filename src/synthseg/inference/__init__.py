"""scan -> prepare -> network -> posteriors -> postprocess -> Segmentation -> writers.

Names are imported on first use, so that importing this package does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synthseg.inference.batch import BatchOptions, BatchResult, Outcome, run_batch
    from synthseg.inference.config import MODES, InferenceConfig
    from synthseg.inference.discovery import Job, discover, plan_jobs
    from synthseg.inference.model import Model, load_model
    from synthseg.inference.outputs import Outputs
    from synthseg.inference.segmentation import Segmentation
    from synthseg.inference.segmenter import Segmenter, Want, segment

__all__ = [
    "MODES",
    "BatchOptions",
    "BatchResult",
    "InferenceConfig",
    "Job",
    "Model",
    "Outcome",
    "Outputs",
    "Segmentation",
    "Segmenter",
    "Want",
    "discover",
    "load_model",
    "plan_jobs",
    "run_batch",
    "segment",
]

_HOME = {
    "batch": ("BatchOptions", "BatchResult", "Outcome", "run_batch"),
    "config": ("MODES", "InferenceConfig"),
    "discovery": ("Job", "discover", "plan_jobs"),
    "model": ("Model", "load_model"),
    "outputs": ("Outputs",),
    "segmentation": ("Segmentation",),
    "segmenter": ("Segmenter", "Want", "segment"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
