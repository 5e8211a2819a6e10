"""The card of a weights file: what the tensors are, in JSON, inside the file. No torch here.

A card holds::

    name          str, how the weights call themselves
    format        1, the version of this layout
    architecture  {"kind": "unet", ...the fields of UNetConfig} or {"kind": "encoder", ...those of EncoderConfig}
    role          what the network is for, one of ROLES; absent in files from before SynthSeg+: "structures"
    spacing_mm    voxel size that the network works at, isotropic
    field_of_view_mm    sides of the images it was trained on; inference cuts larger scans to the brain (optional)
    protocol      {"name", "description", "rows"}: the whole label table, so that the file explains itself
    organ         what the scans show, in one word (absent: "brain"); for another, the brain's locator and CT window are
                  not used
    flip          bool: inference may average with the mirrored scan (absent: it may); False for what has no
                  mirror image (a heart), when training never flipped either
    ct_window     [low, high] in Hounsfield units that CT is clipped to (absent: the brain's, or not clipped for others)
    soft_inputs   bool, role "quality" only: it reads posteriors summed by group, not one-hot labels (absent: one-hot)
    int8          {"ranges": {convolution: {"low", "high", "scale"}}, "images", "seed", "from"}: what 8-bit arithmetic
                  must know, and the synthetic images it was seen on (optional; ``synthseg.engine.ranges``)
    temperature   what logits are divided by before the network is averaged with others, and how it was found in
                  ``calibration`` (optional; ``synthseg.training.temperature``)
    data          what it was trained on
    steps         number of training steps
    scores        {name: number} measured on held-out scans
    licence       terms of the weights
    created       ISO 8601, UTC
    sha256        over the tensors' names, types, shapes and bytes (see ``synthseg.weights.files``)

Further keys are kept as they are. ``data``, ``steps``, ``scores`` and ``licence`` may be null: "not stated".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthseg.errors import WeightsError
from synthseg.reading import require_file
from synthseg.scarce import MORE_MEMORY, lacks_memory

if TYPE_CHECKING:
    from synthseg.labels.protocol import LabelProtocol

FORMAT = 1
METADATA_CARD = "synthseg_card"
METADATA_CARD_HASH = "synthseg_card_sha256"
# What a network of the hierarchy is for (SynthSeg+): structures from an image, tissue groups (S1), groups mended (D),
# structures from an image and groups (S2), cortical parcels (S3), quality of a segmentation (R).
ROLES = ("structures", "tissues", "denoiser", "guided", "parcels", "quality")
STATED = ("data", "steps", "scores", "licence")  # facts a card has room for, null when unknown
BRAIN = "brain"  # the organ of cards that name none
FOREIGN_SUFFIXES = (".h5", ".hdf5", ".keras", ".pt", ".pth", ".ckpt", ".bin", ".pkl")
_REMADE = "take the file again from where it came from, or save it again with synthseg.weights.save_weights"


def make_card(
    name: str,
    architecture: Mapping[str, Any],
    protocol: LabelProtocol,
    *,
    spacing_mm: float,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put a card together from its parts.

    Args:
        name: what the weights are called.
        architecture: ``to_dict()`` of the network's config; ``kind`` is added when absent ("unet").
        protocol: the labels of the network's output channels; its whole table goes into the card.
        spacing_mm: isotropic voxel size that the network works at.
        facts: ``role``, ``data``, ``steps``, ``scores``, ``licence`` and anything else worth telling.
    """
    table = {"name": protocol.name, "description": protocol.description, "rows": protocol.to_rows()}
    core = {
        "name": name,
        "architecture": {"kind": "unet", **architecture},
        "spacing_mm": float(spacing_mm),
        "protocol": table,
    }
    return {**(facts or {}), **core}


def complete_card(card: Mapping[str, Any], *, sha256: str, subject: str | Path) -> dict[str, Any]:
    """The card as it is written: format, date and hash filled in, checked. Raises WeightsError."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    filled = {**dict.fromkeys(STATED), "created": now, **card, "format": FORMAT, "sha256": sha256}
    check_card(filled, subject)
    return filled


def role_of(card: Mapping[str, Any]) -> str:
    """What the network is for, one of :data:`ROLES`; "structures" where the card does not say."""
    return str(card.get("role", "structures"))


def organ_of(card: Mapping[str, Any]) -> str:
    """What the scans show that the network is for; "brain" where the card does not say."""
    organ: str = card.get("organ", BRAIN)
    return organ


def check_card(card: Any, subject: str | Path) -> None:
    """Raises WeightsError when a card is of another format or lacks what is needed to use the tensors."""
    if not isinstance(card, dict):
        raise WeightsError(subject, found=f"a card that is a {type(card).__name__}, not a table of facts", fix=_REMADE)
    if card.get("format") != FORMAT:
        raise WeightsError(
            subject,
            found=f"a card of format {card.get('format')!r} (this synthseg reads format {FORMAT})",
            fix="use the release of synthseg that wrote the file, or newer weights",
        )
    problem = _card_problem(card)
    if problem:
        raise WeightsError(subject, found=f"a card with {problem}", fix=_REMADE)


def _card_problem(card: Mapping[str, Any]) -> str | None:
    for key in ("name", "created", "sha256"):
        if not isinstance(card.get(key), str) or not card[key]:
            return f"no {key}"
    spacing = card.get("spacing_mm")
    if isinstance(spacing, bool) or not isinstance(spacing, int | float) or not 0 < spacing < 100:
        return f"spacing_mm = {spacing!r}, not a voxel size in millimetres"
    architecture = card.get("architecture")
    if not isinstance(architecture, dict) or "kind" not in architecture:
        return "no architecture"
    protocol = card.get("protocol")
    if not isinstance(protocol, dict) or not isinstance(protocol.get("name"), str) or not protocol.get("rows"):
        return "no label protocol"
    int8 = card.get("int8")
    if int8 is not None and not (isinstance(int8, dict) and isinstance(int8.get("ranges"), dict)):
        return "an entry int8 without a table of ranges"
    temperature = card.get("temperature", 1.0)
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0.01 <= temperature <= 100:
        return f"temperature = {temperature!r}, not a number from 0.01 to 100"
    return _role_problem(card)


def _role_problem(card: Mapping[str, Any]) -> str | None:
    if role_of(card) not in ROLES:
        return f"role = {card['role']!r}, none of {', '.join(ROLES)}"
    for key in ("soft_inputs", "flip"):
        stated = card.get(key, False)
        if not isinstance(stated, bool):
            return f"{key} = {stated!r}, neither true nor false"
    return _organ_problem(card)


def _organ_problem(card: Mapping[str, Any]) -> str | None:
    if not isinstance(organ_of(card), str) or not organ_of(card):
        return f"organ = {card['organ']!r}, not a name"
    window = card.get("ct_window")
    if window is None:
        return None
    try:
        low, high = (float(end) for end in window)
    except (TypeError, ValueError):
        low = high = 0.0
    return None if low < high else f"ct_window = {window!r}, not two numbers, the lower one first"


def encode_card(card: Mapping[str, Any], subject: str | Path) -> dict[str, str]:
    """The card as safetensors metadata, with a hash of its own. Raises WeightsError for what JSON cannot hold."""
    try:
        text = json.dumps(card, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        fix = "use texts, finite numbers, lists and dictionaries only"
        raise WeightsError(subject, found=f"a card that is not plain JSON ({error})", fix=fix) from error
    return {METADATA_CARD: text, METADATA_CARD_HASH: hashlib.sha256(text.encode()).hexdigest()}


def decode_card(metadata: Mapping[str, str] | None, subject: str | Path) -> dict[str, Any]:
    """The card from safetensors metadata, intact and usable. Raises WeightsError."""
    text = (metadata or {}).get(METADATA_CARD)
    if text is None:
        raise WeightsError(
            subject,
            found="a safetensors file without a synthseg card",
            fix="synthseg cannot know its labels or architecture: write it with synthseg.weights.save_weights",
        )
    if hashlib.sha256(text.encode()).hexdigest() != (metadata or {}).get(METADATA_CARD_HASH):
        raise WeightsError(subject, found="a card that does not match its own hash (altered or damaged)", fix=_REMADE)
    card = json.loads(text)
    check_card(card, subject)
    return dict(card)


def read_card(path: Path) -> dict[str, Any]:
    """The card of a file, without reading its tensors and without torch. Raises WeightsError."""
    from safetensors import SafetensorError, safe_open

    refuse_foreign(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error
    return decode_card(metadata, path)


def require_role(role: str, wanted: tuple[str, ...], subject: object, *, where: str = "here") -> None:
    """Raise WeightsError unless ``role`` is one of ``wanted``, saying which weights would do ``where``."""
    if role not in wanted:
        found = f"weights of role {role!r}, which are of no use {where}"
        fix = f"use weights of role {' or '.join(wanted)} (`synthseg weights list` shows each file's role)"
        raise WeightsError(str(subject), found=found, fix=fix)


def refuse_foreign(path: Path) -> None:
    """Raises WeightsError for a missing file, and for formats that are known by name or first bytes but not read.

    Who can read Keras' HDF5 files (``synthseg.weights.original``) looks for them first.
    """
    fix = "check the path, or copy the file again; `synthseg weights list` shows the known names"
    require_file(path, error=WeightsError, fix=fix, as_text=True)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        found = f"a file that cannot be read ({error.strerror or error})"
        raise WeightsError(path, found=found, fix="check its permissions and the disk") from error
    if start[8:] == b"{":  # safetensors: eight bytes of header length (which may begin like a pickle), then JSON
        return
    suffix = path.suffix.lower()
    if start.startswith(b"\x89HDF") or suffix in (".h5", ".hdf5"):
        found = "a Keras HDF5 file, which has no card of its own"
        fix = f"import it: `synthseg weights import {path.name}`"
    elif suffix == ".keras":
        found = "a Keras archive"
        fix = "save the network with Keras as HDF5, model.save_weights(NAME.h5), which synthseg reads"
    elif start.startswith((b"PK\x03\x04", b"\x80")) or suffix in FOREIGN_SUFFIXES:
        found = "a pickled torch file, which can run code when opened"
        fix = "load it where you trust it and write its tensors with synthseg.weights.save_weights(path, tensors, card)"
    else:
        return
    raise WeightsError(path, found=found, fix=fix)


def unreadable(path: Path, error: Exception) -> WeightsError:
    """The error for a file that safetensors refuses, with its size: a cut-off download is the usual cause."""
    if lacks_memory(error):
        return WeightsError(path, found=f"no memory to read it ({error})", fix=MORE_MEMORY)
    if isinstance(error, OSError) or "unable to mmap" in str(error):
        fix = "copy it to a local disk, if this one cannot map files into memory, and check the disk"
        return WeightsError(path, found=f"a file that the system does not let be read ({error})", fix=fix)
    size = path.stat().st_size if path.exists() else 0
    found = f"{size:,} bytes that are not a whole safetensors file ({error})"
    return WeightsError(path, found=found, fix="it was cut off or is something else: copy or download it again")
