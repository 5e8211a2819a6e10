"""Scoring a folder of predictions against a folder of truths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from synthseg.errors import SynthsegError
from synthseg.evaluation.pairing import FilePair, pair_files
from synthseg.evaluation.scoring import EvaluationConfig, PairScores, ScoreRow, evaluate_pair
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
    on_done: Callable[[PairScores | Failure], None] | None = None,
) -> Evaluation:
    """Pair two folders (or files) by name and score every pair; one broken pair does not stop the others.

    Args:
        predicted, truth, truth_pattern: see ``synthseg.evaluation.pairing.pair_files``.
        on_done: called after each pair and for each unpaired file, e.g. to print progress.
    Raises: UsageError when a path does not exist or holds no volume; LabelError for an unknown protocol. Everything
        else is a failure in the result.
    """
    config = config or EvaluationConfig()
    load_protocol(config.protocol)  # a wrong name is one error here, not one for each pair
    pairing = pair_files(Path(predicted), Path(truth), truth_pattern=truth_pattern)
    tell = on_done or (lambda _: None)
    failures = [Failure(name, reason) for name, reason in pairing.problems]
    for failure in failures:
        tell(failure)
    scores: list[PairScores] = []
    for pair in pairing.pairs:
        outcome = _attempt(pair, config)
        (scores if isinstance(outcome, PairScores) else failures).append(outcome)  # type: ignore[arg-type]
        tell(outcome)
    return Evaluation(tuple(scores), tuple(failures))


def _attempt(pair: FilePair, config: EvaluationConfig) -> PairScores | Failure:
    try:
        return evaluate_pair(pair.predicted, pair.truth, config, scan=pair.name)
    except (SynthsegError, OSError, MemoryError) as error:
        return Failure(pair.name, str(error) or type(error).__name__)
