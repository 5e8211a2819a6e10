"""Label maps of the developing Human Connectome Project as FeTA's tissues (reference A.1.3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from synthseg.errors import ShapeError
from synthseg.labels.convert import apply_mapping, target_mapping
from synthseg.labels.protocol import load_protocol

VENTRICLES = 4  # of FeTA


def dhcp_to_feta(
    labels: np.ndarray, *, ventricles: np.ndarray | None = None, subject: str | Path = "dHCP label map"
) -> np.ndarray:
    """Merge the nine Draw-EM tissues to FeTA's seven: the table ``dhcp``'s targets.

    Hippocampi and amygdala count as cortical grey matter, dHCP's background around the brain as background. What each
    data set calls external CSF differs, and the amygdala is not cleanly separable: both are in the labels, not here.

    Args:
        labels: [X, Y, Z] values 0 to 9.
        ventricles: [X, Y, Z] bool, a mask that is united with the ventricles (a template's, moved to the subject, for
            the third ventricle and cisterns): where labels meet, the larger value stays.
        subject: for messages.
    Returns: [X, Y, Z] int32, 0 to 7.
    Raises: LabelError for other values; ShapeError for a mask of another shape.
    """
    merged = apply_mapping(labels, target_mapping(load_protocol("dhcp")), subject=subject)
    if ventricles is None:
        return merged.astype(np.int32)
    if ventricles.shape != labels.shape:
        found = f"a mask of ventricles of shape {ventricles.shape} and labels of shape {labels.shape}"
        raise ShapeError(subject, found=found, fix="bring the mask to the label map's grid")
    return np.maximum(merged, np.where(ventricles, VENTRICLES, 0)).astype(np.int32)
