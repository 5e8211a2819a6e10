"""A BIDS derivative of segmentations: what its files are called, and what stands beside them.

Images are written by the pipeline itself, under the names that :func:`derivative_files` plans; what stands beside them
is written by ``sidecars.py`` once they are there.

Source: Brain Imaging Data Structure 1.10, "Derivatives dataset and pipeline description" and "Imaging data types:
Segmentations"; its validator's schema.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from synthseg.cohort.bids import DESCRIPTION, BidsScan
from synthseg.cohort.texts import read_json, write_json, write_text
from synthseg.cohort.work import Job
from synthseg.errors import SynthsegError, UsageError
from synthseg.inference.outputs import Outputs, output_files

BIDS_VERSION = "1.10.0"
DESC = "synthseg"
RAW = "raw"  # what the source dataset is called in links
TISSUE_LABELS = {"gm": "GM", "wm": "WM", "csf": "CSF"}
LOGS = "logs"
# Entities that the standard does not allow for segmentations, and those that say how a file was made, which are ours.
NOT_OF_SEGMENTATIONS = frozenset({"inv", "flip", "mt", "dir", "mod", "desc", "res", "den", "label", "seg", "scale"})
CITATION = (
    "Billot B, Greve DN, Puonti O, et al. SynthSeg: Segmentation of brain MRI scans of any contrast and resolution "
    "without retraining. Medical Image Analysis 86 (2023) 102789."
)
# What the standard has no names for; the validator is told to pass over it.
IGNORED = (
    f"{LOGS}/",
    "*_volumes.tsv",
    "*_volumes.json",
    "*_qc.tsv",
    "*_qc.json",
    "figures/",
    "report/",
    "report-ids.tsv",
    "*.html",
    "cohort*",
    "*_ct.*",
)


def description_of(scan: BidsScan) -> str:
    """The value of ``desc``: "synthseg" for T1w, else with what the other entities do not say.

    That is the kind of image, and the entities of :data:`NOT_OF_SEGMENTATIONS`, so that no two scans share a name:
    "synthsegFLAIR", "synthsegMP2RAGEInv1".
    """
    kind = "" if scan.suffix == "T1w" else scan.suffix
    others = [f"{key.capitalize()}{value}" for key, value in scan.entities.items() if key in NOT_OF_SEGMENTATIONS]
    return DESC + "".join(c for c in kind + "".join(others) if c.isalnum())


def derivative_files(scan: BidsScan, out: Path, outputs: Outputs) -> dict[str, Path]:
    """Every file of one scan by kind, as :func:`synthseg.inference.outputs.output_files` calls them.

    Images lie in the subject's (and session's) ``anat`` folder, pictures in ``figures``, records in ``logs``.
    """
    kept = {key: value for key, value in scan.entities.items() if key not in NOT_OF_SEGMENTATIONS}
    entities = "_".join(f"{key}-{value}" for key, value in kept.items())
    desc = f"desc-{description_of(scan)}"
    subject, session = scan.session
    home = out / f"sub-{subject}" / (f"ses-{session}" if session else "")
    only_1mm = "res-1mm_" if outputs.space == "1mm" else ""
    logs = out / LOGS / f"sub-{subject}" / f"{entities}_{desc}"
    named = {
        "labels": home / "anat" / f"{entities}_{desc}_dseg.nii.gz",
        "labels_1mm": home / "anat" / f"{entities}_res-1mm_{desc}_dseg.nii.gz",
        "posteriors": home / "anat" / f"{entities}_{only_1mm}{desc}_probseg.nii.gz",
        "posteriors_names": logs.with_name(f"{logs.name}_channels.json"),
        "resampled": home / "anat" / f"{entities}_res-1mm_{desc}_{scan.suffix}.nii.gz",
        "mask": home / "anat" / f"{entities}_{only_1mm}{desc}_mask.nii.gz",
        "color_table": logs.with_name(f"{logs.name}_colors.txt"),
        "overlay": home / "figures" / f"{entities}_{desc}_dseg.png",
        "record": logs.with_name(f"{logs.name}.json"),
    }
    for tissue, label in TISSUE_LABELS.items():
        named[tissue] = home / "anat" / f"{entities}_{only_1mm}label-{label}_{desc}_probseg.nii.gz"
    return {kind: named[kind] for kind in output_files(out, entities, outputs)}


def plan(scans: Sequence[BidsScan], out: Path, outputs: Outputs) -> list[Job]:
    """The jobs of a dataset's scans.

    Args:
        outputs: with ``color_table``, which sidecars are made from.
    Raises: UsageError where two scans would become the same file.
    """
    if not outputs.color_table:
        raise UsageError("outputs.color_table", found="off", fix="turn it on: lookup tables are made from it")
    jobs = []
    taken: dict[Path, BidsScan] = {}
    for scan in scans:
        files = derivative_files(scan, out, outputs)
        other = taken.setdefault(files["record"], scan)
        if other is not scan:
            found = f"one derivative for two scans, {other.relative} and {scan.relative}"
            raise UsageError(scan.dataset, found=found, fix="remove one of them, or leave it out with a filter file")
        subject = "_".join(f"{key}-{value}" for key, value in scan.entities.items()) + f"_{scan.suffix}"
        jobs.append(Job(scan.path, subject, files, {**scan.entities, "suffix": scan.suffix}))
    return jobs


def start_dataset(out: Path, dataset: Path) -> None:
    """Write what makes a folder a derivative dataset: its description, a README, and what the validator passes over.

    Raises: UsageError for the dataset itself, or a folder that holds another program's derivatives; OutputError.
    """
    if out.resolve() == dataset.resolve():
        fix = f"write into a folder of its own, e.g. {dataset / 'derivatives' / DESC}"
        raise UsageError(out, found="the dataset itself as the place for results", fix=fix)
    file = out / DESCRIPTION
    if file.exists():
        programs = _programs_of(file)
        if "synthseg" not in programs:
            made_by = ", ".join(programs) or "another program"
            fix = f"write into a folder of its own, e.g. {out / DESC}"
            raise UsageError(out, found=f"a dataset made by {made_by}", fix=fix)
    write_json(file, _dataset_description(out, dataset))
    write_text(out / "README.md", _readme())
    write_text(out / ".bidsignore", "".join(f"{pattern}\n" for pattern in IGNORED))


def _dataset_description(out: Path, dataset: Path) -> dict[str, Any]:
    link = _link(out, dataset)
    raw = dataset / DESCRIPTION
    try:
        about = read_json(raw) if raw.is_file() else {}
    except SynthsegError:  # whether that matters was for the check of the dataset to say
        about = {}
    origin = {"URL": link} | ({"DOI": about["DatasetDOI"]} if about.get("DatasetDOI") else {})
    return {
        "Name": f"synthseg - segmentations of {about.get('Name') or 'brain scans'}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "synthseg",
                "Version": version("synthseg"),
                "Description": "Contrast-agnostic segmentation of brain scans",
            }
        ],
        **({"Authors": about["Authors"]} if about.get("Authors") else {}),
        "HowToAcknowledge": f"Please cite: {CITATION}",
        "SourceDatasets": [origin],
        "DatasetLinks": {RAW: link},
    }


def _link(out: Path, dataset: Path) -> str:
    """The dataset as seen from its derivative; an absolute URI where there is no way between them (other drives)."""
    try:
        return Path(os.path.relpath(dataset.resolve(), out.resolve())).as_posix()
    except ValueError:
        return dataset.resolve().as_uri()


def _programs_of(description: Path) -> list[str]:
    made_by = read_json(description).get("GeneratedBy")
    programs = made_by if isinstance(made_by, list) else []
    return [str(program.get("Name")) for program in programs if isinstance(program, dict)]


def _readme() -> str:
    return f"""# Segmentations by synthseg

Label maps, volumes and predicted quality of brain scans, made without retraining for their contrast or resolution.

- `sub-*/**/*_desc-{DESC}*_dseg.nii.gz`: labels on the scan's own grid (`res-1mm`: on a 1 mm grid). What the values
  mean is in `desc-{DESC}*_dseg.tsv` at the top, or beside the image where a scan has other labels.
- `*_volumes.tsv`: volumes in mm3, sums of probabilities at 1 mm; columns are explained in `desc-{DESC}*_volumes.json`.
- `*_qc.tsv`: predicted Dice of groups of structures and the verdict, if it was asked for.
- `{LOGS}/`: for every scan what was run on what, with which settings; reasons of failures; the ledger of the run.

Weights, versions and settings are in the JSON file beside each image.

Please cite: {CITATION}
"""
