"""Comparing label maps with the truth: folders of them, or weights over many scans and conditions; scores, tables.

Names load on first use, so that importing this package alone loads neither nibabel nor scipy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synthseg.lazy import lazy_names

if TYPE_CHECKING:
    from synthseg.evaluation.agreement import group_dice, group_names
    from synthseg.evaluation.bids import pair_datasets
    from synthseg.evaluation.comparison import Comparison, compare, compare_groups
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
    from synthseg.evaluation.folders import Evaluation, Failure, evaluate_folders, evaluate_pairs
    from synthseg.evaluation.mapping import LabelMapping, read_mapping
    from synthseg.evaluation.pairing import FilePair, Pairing, pair_files
    from synthseg.evaluation.parcels import ParcelGroup, ParcelScore, read_parcel_groups, score_parcels
    from synthseg.evaluation.prediction import (
        CalibrationBin,
        Prediction,
        PredictionScore,
        calibration,
        confusion,
        predictions_of,
        score_predictions,
    )
    from synthseg.evaluation.scoring import (
        EvaluationConfig,
        MetricValue,
        PairScores,
        ScoreRow,
        evaluate_pair,
        score_volumes,
    )
    from synthseg.evaluation.sources import gather_pairs
    from synthseg.evaluation.tables import (
        ScanSummary,
        StructureSummary,
        Summary,
        read_long,
        summarise,
        write_long,
        write_scores,
    )
    from synthseg.evaluation.yardstick import Case, CaseFailure, CaseResult, run_case, run_cases

__all__ = [
    "CalibrationBin",
    "Case",
    "CaseFailure",
    "CaseResult",
    "Comparison",
    "ConditionSummary",
    "Evaluation",
    "EvaluationConfig",
    "Failure",
    "FilePair",
    "LabelMapping",
    "Loss",
    "MetricValue",
    "PairScores",
    "Pairing",
    "ParcelGroup",
    "ParcelScore",
    "Prediction",
    "PredictionScore",
    "ScanSummary",
    "ScoreRow",
    "StructureSummary",
    "Summary",
    "VolumeChange",
    "VolumeRatio",
    "calibration",
    "compare",
    "compare_groups",
    "confusion",
    "evaluate_folders",
    "evaluate_pair",
    "evaluate_pairs",
    "gather_pairs",
    "group_dice",
    "group_names",
    "loss_against_plain",
    "median_percent",
    "pair_datasets",
    "pair_files",
    "predictions_of",
    "read_long",
    "read_mapping",
    "read_parcel_groups",
    "rows_of",
    "run_case",
    "run_cases",
    "score_parcels",
    "score_predictions",
    "score_volumes",
    "structure_dice",
    "summarise",
    "summarise_conditions",
    "volume_changes",
    "volume_ratios",
    "write_long",
    "write_scores",
]

__getattr__ = lazy_names(
    __name__,
    {
        "agreement": ("group_dice", "group_names"),
        "bids": ("pair_datasets",),
        "comparison": ("Comparison", "compare", "compare_groups"),
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
        "folders": ("Evaluation", "Failure", "evaluate_folders", "evaluate_pairs"),
        "mapping": ("LabelMapping", "read_mapping"),
        "pairing": ("FilePair", "Pairing", "pair_files"),
        "parcels": ("ParcelGroup", "ParcelScore", "read_parcel_groups", "score_parcels"),
        "prediction": (
            "CalibrationBin",
            "Prediction",
            "PredictionScore",
            "calibration",
            "confusion",
            "predictions_of",
            "score_predictions",
        ),
        "scoring": ("EvaluationConfig", "MetricValue", "PairScores", "ScoreRow", "evaluate_pair", "score_volumes"),
        "sources": ("gather_pairs",),
        "tables": (
            "ScanSummary",
            "StructureSummary",
            "Summary",
            "read_long",
            "summarise",
            "write_long",
            "write_scores",
        ),
        "yardstick": ("Case", "CaseFailure", "CaseResult", "run_case", "run_cases"),
    },
)
