"""Comparing folders of label maps with the truth: which files belong together, scores, tables.

Names load on first use, so that importing this package alone loads neither nibabel nor scipy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synthseg.lazy import lazy_names

if TYPE_CHECKING:
    from synthseg.evaluation.folders import Evaluation, Failure, evaluate_folders
    from synthseg.evaluation.mapping import LabelMapping, read_mapping
    from synthseg.evaluation.pairing import FilePair, Pairing, pair_files
    from synthseg.evaluation.scoring import EvaluationConfig, PairScores, ScoreRow, evaluate_pair
    from synthseg.evaluation.tables import ScanSummary, StructureSummary, Summary, summarise, write_scores

__all__ = [
    "Evaluation",
    "EvaluationConfig",
    "Failure",
    "FilePair",
    "LabelMapping",
    "PairScores",
    "Pairing",
    "ScanSummary",
    "ScoreRow",
    "StructureSummary",
    "Summary",
    "evaluate_folders",
    "evaluate_pair",
    "pair_files",
    "read_mapping",
    "summarise",
    "write_scores",
]

__getattr__ = lazy_names(
    __name__,
    {
        "folders": ("Evaluation", "Failure", "evaluate_folders"),
        "mapping": ("LabelMapping", "read_mapping"),
        "pairing": ("FilePair", "Pairing", "pair_files"),
        "scoring": ("EvaluationConfig", "PairScores", "ScoreRow", "evaluate_pair"),
        "tables": ("ScanSummary", "StructureSummary", "Summary", "summarise", "write_scores"),
    },
)
