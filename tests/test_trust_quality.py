"""A verdict is one on numbers: without any, or with one that is none, there is no verdict to pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
from torch import nn

from inference_helpers import small_protocol
from synthseg.errors import WeightsError
from synthseg.inference import Model
from synthseg.inference.quality import Quality
from synthseg.inference.record import recorded_quality
from synthseg.labels import LabelProtocol

THRESHOLDS = {"fail_below": 0.65, "warn_below": 0.75}


@pytest.mark.parametrize("scores", [{}, {"a": math.nan}, {"a": 0.9, "b": math.inf}])
def test_a_verdict_needs_scores_that_are_numbers(scores: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="quality: no scores, or some that are not finite"):
        Quality(scores)


@pytest.mark.parametrize("scores", [{}, {"a": math.nan}, {"a": "0x"}])
def test_a_record_of_such_scores_is_damaged_also_where_no_quality_is_asked_for(scores: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        recorded_quality({"quality": {"scores": scores, "thresholds": THRESHOLDS}})
    found = recorded_quality({"quality": {"scores": {"a": 0.7}, "thresholds": THRESHOLDS}})
    assert found is not None
    assert found.verdict == "warn"


def test_a_quality_network_that_scores_nothing_is_refused() -> None:
    alone = LabelProtocol("alone", "background only", small_protocol().labels[:1])
    with pytest.raises(WeightsError, match=r"weights empty: found a quality network whose protocol has no group"):
        Model.from_network(nn.Identity(), alone, spacing_mm=2.0, name="empty", role="quality")
