"""The rule-based intensity sampler of 2020: means of white matter, grey matter and fluid, the rest by rule from them.

Source: Billot et al. 2020 (MIDL); reference, fetal-and-plus D.3: the rules as the first public code had them. Whether
they are the paper's "SynthSeg-rule" is not established there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from synthseg.generation.deformation import uniform
from synthseg.labels.protocol import LabelProtocol

MEAN_RANGE = (25.0, 225.0)  # of the three tissues, and of all that no rule is about
STD_RANGE = (5.0, 25.0)
LEAST_APART = 15.0  # of any two of the three tissues
_TRIES = 64  # three uniform means are far enough apart in about four of five tries

Rule = Callable[[Tensor, Callable[[float, float], Tensor]], Tensor]


def _times(tissue: int, low: float, high: float) -> Rule:
    return lambda base, draw: base[:, tissue] * draw(low, high)


def _between(first: int, second: int, low: float, high: float) -> Rule:
    def mixed(base: Tensor, draw: Callable[[float, float], Tensor]) -> Tensor:
        share = draw(low, high)
        return share * base[:, first] + (1 - share) * base[:, second]

    return mixed


WHITE, GREY, FLUID = 0, 1, 2
_FREE: Rule = lambda base, draw: draw(*MEAN_RANGE)  # noqa: E731, ARG005

# Left-sided and neutral values; the right side takes its partner's. What is not listed is free.
RULES: dict[int, Rule] = {
    2: _times(WHITE, 1.0, 1.0),
    3: _times(GREY, 1.0, 1.0),
    **dict.fromkeys((4, 5, 14, 15, 24, 72), _times(FLUID, 0.95, 1.05)),
    7: _times(WHITE, 0.7, 1.3),
    8: _times(GREY, 0.7, 1.3),
    10: _between(GREY, WHITE, 0.4, 0.9),
    28: _between(GREY, WHITE, 0.1, 0.6),
    **dict.fromkeys((11, 12, 17, 18), _times(GREY, 0.9, 1.1)),
    **dict.fromkeys((13, 16), _times(WHITE, 0.8, 1.2)),
    **dict.fromkeys((136, 137), _between(FLUID, WHITE, 0.0, 1.0)),
    85: _times(WHITE, 0.8, 1.2),
    **dict.fromkeys((30, 502, 514), _times(FLUID, 0.7, 1.3)),
    506: _times(FLUID, 0.95, 1.05),
}
ACCUMBENS, CAUDATE = 26, 11


def draw_rules(protocol: LabelProtocol, classes: Tensor, batch: int, *, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of every class by the rules.

    Args:
        classes: [K] int64, the class of each label of the protocol; labels that share one take the last label's value.
    Returns: [B, G] means and [B, G] standard deviations, in units of 0 to 255; both sides are alike.
    """
    tries = uniform((batch, _TRIES, 3), *MEAN_RANGE, rng=rng)
    gaps = (tries - tries.roll(1, -1)).abs().amin(-1)
    first = (gaps >= LEAST_APART).int().argmax(1)
    base = tries[torch.arange(batch, device=rng.device), first]
    of_value: dict[int, Tensor] = {}

    def draw(low: float, high: float) -> Tensor:
        return uniform((batch,), low, high, rng=rng)

    count = int(classes.max()) + 1
    means = torch.zeros(batch, count, device=rng.device)
    stds = uniform((batch, count), *STD_RANGE, rng=rng)
    for label in sorted(protocol.labels, key=lambda one: one.side == "right"):
        own = label.partner if label.side == "right" else label.value
        if own not in of_value:
            if own == ACCUMBENS and CAUDATE in of_value:
                of_value[own] = of_value[CAUDATE] * draw(0.9, 1.1)
            else:
                of_value[own] = RULES.get(own, _FREE)(base, draw)
    for label, column in zip(protocol.labels, classes.tolist(), strict=True):
        means[:, column] = of_value[label.partner if label.side == "right" else label.value]
    partner = {label.value: column for label, column in zip(protocol.labels, classes.tolist(), strict=True)}
    for label in protocol.labels:
        if label.side == "right":
            stds[:, partner[label.value]] = stds[:, partner[label.partner]]
    return means, stds
