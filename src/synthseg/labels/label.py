"""One row of a label table: what one value of a label map means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Side = Literal["neutral", "left", "right"]
SIDES: tuple[Side, ...] = ("neutral", "left", "right")


@dataclass(frozen=True)
class Label:
    """What one value of a label map means.

    Attributes:
        value: the number in the file (e.g. 41).
        name: for people and CSV headers; one line, no tabs.
        side: "neutral", "left" or "right" (the subject's).
        partner: value of the same structure on the other side; the label's own value when neutral.
        generation_class: which Gaussian draws its intensity under the random-contrast prior; labels may share one.
        contrast_class: which Gaussian of a contrast-specific prior (left and right share; gaps are allowed, because
            the numbers point into the prior's own table).
        target: the value it becomes in the training target (0 = background, i.e. not segmented).
        topology: group cleaned as one object after inference; 0 = never cleaned.
        quality: group of the quality score; 0 = none.
        color: red, green, blue, 0 to 255.
        tissue: coarse tissue group (0 background, 1 white matter and nuclei, 2 grey matter, 3 fluid, 4 cerebellum).
    """

    value: int
    name: str
    side: str
    partner: int
    generation_class: int
    contrast_class: int
    target: int
    topology: int
    quality: int
    color: tuple[int, int, int]
    tissue: int = 0
