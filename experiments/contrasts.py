"""Plain stand-ins for MRI contrasts: one mean and spread for every kind of tissue.

For toy scans and simulated patients only: orderings of tissues (what is bright, what is dark) in round numbers, not
measurements; priors measured on scans come from ``synthseg priors estimate``.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from synthseg.errors import UsageError
from synthseg.files import atomic_file
from synthseg.generation.config import MixturePrior
from synthseg.generation.priors import COLUMNS
from synthseg.labels.protocol import LabelProtocol

_WHITE = {2, 41, 7, 46, 16, 28, 60, 85, 512, 530}
_GREY = {3, 42, 8, 47, 17, 53, 18, 54, 11, 50, 12, 51, 26, 58}
_DEEP = {10, 49, 13, 52}  # between grey and white
_FLUID = {4, 5, 43, 44, 14, 15, 24, 72, 506, 136, 137, 163, 164}
_BONE, _FAT = {515}, {511, 516}


class Contrast(NamedTuple):
    """Mean intensities of 0 to 255."""

    white: float
    grey: float
    deep: float
    fluid: float
    bone: float
    fat: float
    soft: float  # muscle, vessels and all else
    lesion: float


CONTRASTS = {
    "t1": Contrast(white=190, grey=130, deep=160, fluid=45, bone=25, fat=235, soft=105, lesion=120),
    "t2": Contrast(white=85, grey=130, deep=105, fluid=235, bone=25, fat=150, soft=70, lesion=190),
    "flair": Contrast(white=105, grey=150, deep=125, fluid=40, bone=25, fat=175, soft=90, lesion=220),
}


def contrast_means(protocol: LabelProtocol, contrast: str) -> dict[int, float]:
    """The mean intensity of every label value. Raises: UsageError for an unknown contrast."""
    if contrast not in CONTRASTS:
        raise UsageError("contrast", found=repr(contrast), fix=f"use one of {', '.join(CONTRASTS)}")
    means = CONTRASTS[contrast]
    kinds = ((_WHITE, "white"), (_GREY, "grey"), (_DEEP, "deep"), (_FLUID, "fluid"), (_BONE, "bone"), (_FAT, "fat"))
    of_value: dict[int, float] = {}
    for label in protocol.labels:
        kind = next((name for values, name in kinds if label.value in values), "soft")
        kind = "lesion" if "lesion" in label.name else kind
        of_value[label.value] = 0.0 if label.value == 0 else float(getattr(means, kind))
    return of_value


def contrast_prior(
    protocol: LabelProtocol, contrast: str, *, spread: float = 8.0, noise: tuple[float, float] = (6.0, 2.0)
) -> MixturePrior:
    """The contrast as a prior of one Gaussian a label.

    Args:
        spread: standard deviation of a tissue's mean from scan to scan.
        noise: mean and standard deviation of the intensities' own standard deviation.
    """
    means = contrast_means(protocol, contrast)
    return MixturePrior(
        kind="normal",
        label_classes=tuple(range(len(protocol))),
        class_means=tuple((mean, spread if mean else 0.0) for mean in means.values()),
        class_stds=tuple(noise if mean else (0.0, 0.0) for mean in means.values()),
        symmetric_probability=1.0,
        background_zero_probability=1.0,
        background_dark_probability=0.0,
    )


def write_prior(protocol: LabelProtocol, contrast: str, path: Path) -> Path:
    """The contrast as a table of priors by contrast class, as ``load_priors`` reads it."""
    means = contrast_means(protocol, contrast)
    classes = protocol.contrast_classes.tolist()
    with atomic_file(path) as file:
        lines = [COLUMNS]
        for number in range(max(classes) + 1):
            own = [means[v] for v, c in zip(protocol.values.tolist(), classes, strict=True) if c == number]
            mean = sum(own) / len(own) if own else 0.0
            lines.append((str(number), f"{mean:g}", "8", "6", "2"))
        file.write("\n".join("\t".join(line) for line in lines).encode() + b"\n")
    return path
