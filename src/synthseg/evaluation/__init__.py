"""Comparing label maps with the truth: folders of them, or weights over many scans and conditions; scores, tables.

Names load on first use, so that importing this package alone loads neither nibabel nor scipy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synthseg.lazy import lazy_names

if TYPE_CHECKING:
    from synthseg.evaluation.conditions import (
        ConditionSummary,
        Loss,
        VolumeChange,
        VolumeRatio,
        loss_against_plain,
        median_percent,
        rows_of,
        structure_dice,
        summarise_conditions,
        volume_changes,
        volume_ratios,
    )
    from synthseg.evaluation.folders import Evaluation, Failure, evaluate_folders
    from synthseg.evaluation.mapping import LabelMapping, read_mapping
    from synthseg.evaluation.pairing import FilePair, Pairing, pair_files
    from synthseg.evaluation.scoring import EvaluationConfig, PairScores, ScoreRow, evaluate_pair, score_volumes
    from synthseg.evaluation.tables import ScanSummary, StructureSummary, Summary, summarise, write_scores
    from synthseg.evaluation.yardstick import Case, CaseFailure, CaseResult, run_case, run_cases

__all__ = [
    "Case",
    "CaseFailure",
    "CaseResult",
    "ConditionSummary",
    "Evaluation",
    "EvaluationConfig",
    "Failure",
    "FilePair",
    "LabelMapping",
    "Loss",
    "PairScores",
    "Pairing",
    "ScanSummary",
    "ScoreRow",
    "StructureSummary",
    "Summary",
    "VolumeChange",
    "VolumeRatio",
    "evaluate_folders",
    "evaluate_pair",
    "loss_against_plain",
    "median_percent",
    "pair_files",
    "read_mapping",
    "rows_of",
    "run_case",
    "run_cases",
    "score_volumes",
    "structure_dice",
    "summarise",
    "summarise_conditions",
    "volume_changes",
    "volume_ratios",
    "write_scores",
]

__getattr__ = lazy_names(
    __name__,
    {
        "conditions": (
            "ConditionSummary",
            "Loss",
            "VolumeChange",
            "VolumeRatio",
            "loss_against_plain",
            "median_percent",
            "rows_of",
            "structure_dice",
            "summarise_conditions",
            "volume_changes",
            "volume_ratios",
        ),
        "folders": ("Evaluation", "Failure", "evaluate_folders"),
        "mapping": ("LabelMapping", "read_mapping"),
        "pairing": ("FilePair", "Pairing", "pair_files"),
        "scoring": ("EvaluationConfig", "PairScores", "ScoreRow", "evaluate_pair", "score_volumes"),
        "tables": ("ScanSummary", "StructureSummary", "Summary", "summarise", "write_scores"),
        "yardstick": ("Case", "CaseFailure", "CaseResult", "run_case", "run_cases"),
    },
)
