"""Scoring a folder of predictions against a folder of truths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from synthseg.errors import SynthsegError
from synthseg.evaluation.measurements import Measurement
from synthseg.evaluation.pairing import FilePair, Pairing
from synthseg.evaluation.processes import work_through
from synthseg.evaluation.scoring import EvaluationConfig, PairScores, ScoreRow, evaluate_pair
from synthseg.evaluation.sources import gather_pairs
from synthseg.labels import load_protocol


@dataclass(frozen=True)
class Failure:
    """A file that could not be scored, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Evaluation:
    """The scores of all pairs, and the failures."""

    scores: tuple[PairScores, ...]
    failures: tuple[Failure, ...]
    long: tuple[Measurement, ...] = ()  # the metrics asked for, one a line, with the pairs' scans and methods

    @property
    def rows(self) -> tuple[ScoreRow, ...]:
        """All rows, scan by scan."""
        return tuple(row for pair in self.scores for row in pair.rows)


def evaluate_folders(
    predicted: str | Path,
    truth: str | Path,
    config: EvaluationConfig | None = None,
    *,
    truth_pattern: str = "*",
    jobs: int = 1,
    on_done: Callable[[PairScores | Failure], None] | None = None,
) -> Evaluation:
    """Pair two folders, files, lists or BIDS datasets and score every pair.

    Args:
        predicted, truth, truth_pattern: see ``synthseg.evaluation.sources.gather_pairs``.
        jobs, on_done: see :func:`evaluate_pairs`.
    Raises: UsageError when a path does not exist or holds no volume; LabelError for an unknown protocol. Everything
        else is a failure in the result.
    """
    config = config or EvaluationConfig()
    load_protocol(config.protocol)  # a wrong name is told before any folder is looked at
    pairing = gather_pairs(predicted, truth, truth_pattern=truth_pattern)
    return evaluate_pairs(pairing, config, jobs=jobs, on_done=on_done)


def evaluate_pairs(
    pairing: Pairing,
    config: EvaluationConfig | None = None,
    *,
    jobs: int = 1,
    on_done: Callable[[PairScores | Failure], None] | None = None,
) -> Evaluation:
    """Score every pair; one broken pair does not stop the others. The result does not depend on ``jobs``.

    Args:
        jobs: processes; a script that uses several needs ``if __name__ == "__main__":`` around its own work.
        on_done: called for each file without a partner and then after each pair, in order, e.g. to print progress.
    Raises: LabelError for an unknown protocol. Everything else is a failure in the result.
    """
    config = config or EvaluationConfig()
    load_protocol(config.protocol)  # a wrong name is one error here, not one for each pair
    tell = on_done or (lambda _: None)
    failures = [Failure(name, reason) for name, reason in pairing.problems]
    for failure in failures:
        tell(failure)
    scores: list[PairScores] = []
    long: list[Measurement] = []
    outcomes = work_through(partial(_attempt, config=config), pairing.pairs, jobs, lost=_lost)
    for pair, outcome in zip(pairing.pairs, outcomes, strict=True):
        if isinstance(outcome, PairScores):
            scores.append(outcome)
            long += measurements(pair, outcome)
        else:
            failures.append(outcome)
        tell(outcome)
    return Evaluation(tuple(scores), tuple(failures), tuple(long))


def measurements(pair: FilePair, scores: PairScores) -> list[Measurement]:
    """The lines of a long table that a pair's scores make."""
    return [
        Measurement(
            scan=pair.scan or pair.name,
            method=pair.method,
            label=str(value.label),
            structure=value.structure,
            metric=value.metric,
            value=value.value,
            unit=value.unit,
        )
        for value in scores.values
    ]


def _attempt(pair: FilePair, config: EvaluationConfig) -> PairScores | Failure:
    try:
        return replace(evaluate_pair(pair.predicted, pair.truth, config, scan=pair.name), method=pair.method)
    except (SynthsegError, OSError, MemoryError) as error:
        return Failure(pair.name, str(error) or type(error).__name__)


def _lost(pair: FilePair) -> Failure:
    return Failure(pair.name, "the process that scored it ended before it was done (too little memory? try --jobs 1)")
