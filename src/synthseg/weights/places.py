"""The folders that weights are looked for in. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path

from synthseg.errors import UsageError, WeightsError
from synthseg.files import at_home

MODEL_DIR_VARIABLE = "SYNTHSEG_MODEL_DIR"  # the folder of --model-dir
FOLDER_VARIABLE = "SYNTHSEG_WEIGHTS_DIR"
FREESURFER_VARIABLE = "FREESURFER_HOME"  # its folder "models" holds the original's files
FREESURFER = "freesurfer"


def use_model_dir(folder: str | Path | None) -> None:
    """Look in a folder first, for the rest of the process (None changes nothing). Raises UsageError if it is none."""
    if folder is None:
        return
    path = at_home(folder)
    if not _can_look_into(path):
        there = os.access(path, os.F_OK)
        what = "a file" if there and path.is_file() else "a folder that cannot be read" if there else "no such folder"
        fix = "give the folder that holds the weights, e.g. the original's synthseg_2.0.h5"
        raise UsageError(f"--model-dir {folder}", found=what, fix=fix)
    os.environ[MODEL_DIR_VARIABLE] = str(path.resolve())


def asked_folders() -> list[tuple[Path, str]]:
    """The folders beside the shipped one, first one first, and what each is: "model-dir", "folder" or "freesurfer".

    Raises: WeightsError for a folder that was asked for and does not exist, or cannot be read; FreeSurfer's may.
    """
    found = []
    for variable, source in ((MODEL_DIR_VARIABLE, "model-dir"), (FOLDER_VARIABLE, "folder")):
        asked = os.environ.get(variable)
        if asked:
            path = at_home(asked)
            if not _can_look_into(path):
                found_there = f"{asked!r}, which is not a folder that can be read"
                raise WeightsError(variable, found=found_there, fix="correct or unset it")
            found.append((path, source))
    models = freesurfer_models()
    if models is not None and _can_look_into(models):
        found.append((models, FREESURFER))
    return found


def freesurfer_models() -> Path | None:
    """Where FreeSurfer keeps its networks, whether or not that folder exists; None without FREESURFER_HOME."""
    home = os.environ.get(FREESURFER_VARIABLE)
    return at_home(home) / "models" if home else None


def _can_look_into(folder: Path) -> bool:
    return os.access(folder, os.R_OK | os.X_OK) and folder.is_dir()
