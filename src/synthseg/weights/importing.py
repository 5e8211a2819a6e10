"""The original's Keras files as files of our own, one a network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthseg.errors import OutputError, UsageError
from synthseg.files import at_home
from synthseg.weights.files import is_saved, save_weights
from synthseg.weights.network import verify_weights
from synthseg.weights.original import Offer, offers, read_offer
from synthseg.weights.places import FOLDER_VARIABLE
from synthseg.weights.store import ALIASES, SHIPPED_DIR, SUFFIX


@dataclass(frozen=True)
class Imported:
    """A network that was written: where, and what it was made of."""

    path: Path
    name: str
    role: str
    prefix: str  # of its layers in the Keras file
    arrays: int  # of the Keras file, all of which are used
    labels: int
    protocol: str


def import_keras(
    source: str | Path,
    out: str | Path | None = None,
    *,
    name: str | None = None,
    protocols: Sequence[str | Path] = (),
    half: bool = False,
    overwrite: bool = False,
) -> list[Imported]:
    """Write each network of a Keras .h5 file as weights of our own, read back and checked.

    Args:
        out: a folder (made when missing), or for a single network a file *.safetensors. None is the folder of
            SYNTHSEG_WEIGHTS_DIR, else the current one.
        name: what the network is called, and its file in a folder; with several, its role is added. None takes that of
            the original's networks, else the file's name.
        protocols: labels, where the number of outputs does not tell them (:func:`synthseg.weights.original.offers`).
        half: store halves, as in ``save_weights``.
        overwrite: replace files that are there.
    Raises: WeightsError for a file that is not whole or holds anything else, named by its layer; LabelError for an
        unknown protocol; UsageError for one file for several networks, and for a name that the package's own weights
        have; OutputError for a file that exists with something else in it, or cannot be
        written.
    """
    found = offers(source, protocols)
    cards = [offer.card() for offer in found]  # unknown labels are told before anything is written
    names = [_name(offer, name, len(found)) for offer in found]
    targets = _targets(out, names)
    # All of them are read before any is written: a damaged one leaves nothing.
    read = [_tensors(offer, called) for offer, called in zip(found, names, strict=True)]
    there = [
        target.exists() and not overwrite and is_saved(target, *each, half=half)  # by an import that was stopped
        for target, each in zip(targets, read, strict=True)
    ]
    for target, same in zip(targets, there, strict=True):
        if target.exists() and not overwrite and not same:
            raise OutputError(target, found="a file of that name", fix="add --overwrite, or write elsewhere with -o")
    written = []
    for offer, called, target, card, each, same in zip(found, names, targets, cards, read, there, strict=True):
        if not same:
            save_weights(target, *each, half=half)
        verify_weights(target)
        labels = int(card["architecture"]["out_channels"])
        protocol = str(card["protocol"]["name"])
        prefix, count = offer.network.prefix, offer.network.arrays
        written.append(Imported(target, called, offer.role, prefix, count, labels, protocol))
    return written


def _tensors(offer: Offer, called: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    arrays, card = read_offer(offer)
    return {key: torch.from_numpy(array) for key, array in arrays.items()}, {**card, "name": called}


def _name(offer: Offer, name: str | None, count: int) -> str:
    called = offer.name if name is None else f"{name}-{offer.role}" if count > 1 else name
    if called in ALIASES or (SHIPPED_DIR / f"{called}{SUFFIX}").is_file():
        fix = "call it otherwise: --name NAME"
        raise UsageError(f"the name {called!r}", found="that of weights that come with the package", fix=fix)
    return called


def _targets(out: str | Path | None, names: Sequence[str]) -> list[Path]:
    folder = Path(out) if out is not None else at_home(os.environ.get(FOLDER_VARIABLE) or ".")
    if folder.suffix != SUFFIX:
        return [folder / f"{name}{SUFFIX}" for name in names]
    if len(names) > 1:
        found = f"one file for {len(names)} networks ({', '.join(names)})"
        raise UsageError(folder, found=found, fix="give a folder: each network gets a file of its own")
    return [folder]
