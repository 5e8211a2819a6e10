"""What of a JSON sidecar by dcm2niix is technical: how the image was made. Where, when, by and of whom is left out.

With ``-ba y`` dcm2niix leaves out the patient's own fields, and still writes the institution's name and address, the
station, the device's serial number, the time of day, the study's and the procedure's descriptions and comments on the
image (measured with dcm2niix 1.0.20260724 on series with every text of the standard filled in). Free text may hold
anything, so texts are kept by an allow-list; of the rest numbers only.

Source: DICOM PS3.15, Annex E (attributes that the basic profile removes or cleans).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from synthseg.errors import SynthsegError
from synthseg.files import atomic_file

# Texts that a scanner or dcm2niix fills in itself, from lists of its own.
TEXTS = frozenset(
    {"Modality", "Manufacturer", "ManufacturersModelName", "SoftwareVersions", "PatientPosition", "BodyPartExamined"}
    | {"ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType", "ImageType", "ImageTypeText"}
    | {"PhaseEncodingDirection", "PhaseEncodingAxis", "InPlanePhaseEncodingDirectionDICOM", "SliceEncodingDirection"}
    | {"ParallelAcquisitionTechnique", "MatrixCoilMode", "ConversionSoftware", "ConversionSoftwareVersion"}
)
# Numbers that tell of the patient, should dcm2niix ever write them in spite of ``-ba y``.
PERSONAL = frozenset({"PatientAge", "PatientSize", "PatientWeight", "PatientID", "AccessionNumber", "StudyID"})


def technical(values: dict[str, Any]) -> dict[str, Any]:
    """The entries that say nothing of patient, place or time of day, in their order."""
    return {name: value for name, value in values.items() if _is_technical(name, value)}


def write_technical(sidecar: Path, target: Path) -> None:
    """Write what is technical of a sidecar; nothing where it is no JSON object, which it need not be for segmenting.

    Raises: OutputError if it cannot be written; SynthsegError if it cannot be read.
    """
    try:
        given = json.loads(sidecar.read_bytes().decode("utf-8", "replace"))
    except OSError as error:
        raise SynthsegError(sidecar, found=f"no readable file ({error})", fix="convert the series again") from error
    except (ValueError, RecursionError):  # descriptions come in any encoding, and dcm2niix may pass them on
        return
    if isinstance(given, dict):
        with atomic_file(target) as file:
            file.write((json.dumps(technical(given), indent=1) + "\n").encode())


def _is_technical(name: str, value: object) -> bool:
    if name in TEXTS:
        return True
    return name not in PERSONAL and _is_numbers(value)


def _is_numbers(value: object) -> bool:
    """A number, yes or no, or a list of these, also of lists."""
    if isinstance(value, list):
        return all(_is_numbers(one) for one in value)
    return isinstance(value, bool | int | float)
