"""scan -> prepare -> network -> posteriors -> postprocess -> Segmentation -> writers.

Names are imported on first use, so that importing this package does not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synthseg.lazy import lazy_names

if TYPE_CHECKING:
    from synthseg.inference.batch import BatchOptions, BatchResult, Outcome, run_batch
    from synthseg.inference.config import InferenceConfig
    from synthseg.inference.discovery import Job, discover, plan_jobs
    from synthseg.inference.model import Model, load_model
    from synthseg.inference.modes import MODES
    from synthseg.inference.outputs import Outputs
    from synthseg.inference.quality import Quality
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
    "Quality",
    "Segmentation",
    "Segmenter",
    "Want",
    "discover",
    "load_model",
    "plan_jobs",
    "run_batch",
    "segment",
]

__getattr__ = lazy_names(
    __name__,
    {
        "batch": ("BatchOptions", "BatchResult", "Outcome", "run_batch"),
        "config": ("InferenceConfig",),
        "discovery": ("Job", "discover", "plan_jobs"),
        "model": ("Model", "load_model"),
        "modes": ("MODES",),
        "outputs": ("Outputs",),
        "quality": ("Quality",),
        "segmentation": ("Segmentation",),
        "segmenter": ("Segmenter", "Want", "segment"),
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
