"""The original's networks: which files hold them, what each is for, which labels it gives. No torch here.

Source: the reference, sections 1.3 to 1.7 (labels), 4.2 (networks and files) and 6.1 (which are used together). The
files are distributed by the authors of SynthSeg and with FreeSurfer, not with this package.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from synthseg.errors import WeightsError
from synthseg.labels.protocol import LabelProtocol, load_protocol
from synthseg.weights.card import complete_card, make_card
from synthseg.weights.keras import KerasNetwork, read_tensors, survey

SPACING_MM = 1.0
QUALITY_FIELD_MM = (224.0, 224.0, 224.0)  # the window that quality control was trained on
PREFIX_ROLES = {"l2l": "denoiser", "unet2": "guided", "unet_parc": "parcels", "qc": "quality"}
TISSUES = "tissue-groups"
# Labels by what a network is for and how many it gives.
PROTOCOLS: dict[str, dict[int, str]] = {
    "structures": {32: "synthseg-1.0", 33: "synthseg-2.0"},
    "tissues": {5: TISSUES},
    "denoiser": {5: TISSUES},
    "guided": {32: "synthseg-1.0", 33: "synthseg-2.0"},
    "parcels": {69: "desikan-killiany"},
    "quality": {9: "quality-groups"},
}
_PLUS = {"parcels": "synthseg-2.0-parcels", "quality": "synthseg-2.0-quality"}
_ROBUST = {role: f"synthseg-2.0-{role}" for role in ("tissues", "denoiser", "guided")}
# A family: names of networks by role. 1.0 has no robust networks, and takes parcels and quality control of 2.0.
FAMILIES: dict[str, dict[str, str]] = {
    "synthseg-2.0": {"structures": "synthseg-2.0", **_ROBUST, **_PLUS},
    "synthseg-1.0": {"structures": "synthseg-1.0", **_PLUS},
}
# The original's files: names of the networks in each, by role.
FILES: dict[str, dict[str, str]] = {
    "synthseg_1.0.h5": {"structures": "synthseg-1.0"},
    "synthseg_2.0.h5": {"structures": "synthseg-2.0"},
    "synthseg_robust_2.0.h5": _ROBUST,
    "synthseg_parc_2.0.h5": {"parcels": _PLUS["parcels"]},
    "synthseg_qc_2.0.h5": {"quality": _PLUS["quality"]},
}
# name of a network -> its file and role there
MEMBERS = {name: (file, role) for file, networks in FILES.items() for role, name in networks.items()}


@dataclass(frozen=True)
class Offer:
    """A network that a Keras file offers: what it is called, what for, with which labels."""

    name: str
    role: str
    network: KerasNetwork
    protocol: LabelProtocol | None  # None: as many outputs as no protocol of the original's has

    def card(self) -> dict[str, Any]:
        """Its card, without what the file's bytes must be read for. Raises WeightsError for labels nobody knows."""
        path = self.network.path
        if self.protocol is None:
            outputs = self.network.architecture["out_channels"]
            known = ", ".join(map(str, PROTOCOLS[self.role]))
            raise WeightsError(
                path,
                found=f"a network ({self.network.prefix}, {self.role}) with {outputs} outputs, whose labels the file "
                f"does not tell (the original's have {known})",
                fix=f"import it with its labels: `synthseg weights import {path.name} --protocol NAME|TSV`",
            )
        original = path.name in FILES
        facts: dict[str, Any] = {
            "role": self.role,
            "data": "trained by the authors of SynthSeg (going by the file's name)" if original else None,
            "licence": "as distributed with the file" if original else None,
            "source": {"file": path.name, "network": self.network.prefix},
            "created": datetime.fromtimestamp(int(path.stat().st_mtime), UTC).isoformat(),
        }
        if self.role == "quality":
            facts["field_of_view_mm"] = list(QUALITY_FIELD_MM)
        return make_card(self.name, self.network.architecture, self.protocol, spacing_mm=SPACING_MM, facts=facts)


def offers(path: str | Path, protocols: Sequence[str | Path] = ()) -> tuple[Offer, ...]:
    """The networks of a Keras file; no numbers are read.

    Args:
        protocols: labels of networks whose number of outputs does not tell, or tells wrongly (names or .tsv files);
            each is used for the networks with as many outputs.
    Raises: WeightsError for a file that is no such file or not whole (:func:`synthseg.weights.keras.survey`), or a
        protocol that fits none of its networks; LabelError for an unknown or invalid protocol.
    """
    path = Path(path)
    given = {len(protocol.target_values): protocol for protocol in map(load_protocol, protocols)}
    networks = survey(path).networks
    unused = sorted(set(given) - {network.architecture["out_channels"] for network in networks})
    if unused:
        protocol = given[unused[0]]
        counts = ", ".join(f"{network.architecture['out_channels']} ({network.prefix})" for network in networks)
        found = f"networks with {counts} outputs, none with the {unused[0]} labels of {protocol.name}"
        raise WeightsError(path, found=found, fix="give the protocol that the network was trained on")
    inputs = {network.prefix: network.architecture["in_channels"] for network in networks}
    groups = {inputs.get("l2l"), inputs.get("unet2", 0) - 1}  # channels that other networks of the file take of S1
    stated = [_role_and_protocol(network, given, groups) for network in networks]
    names = FILES.get(path.name, {})
    several = len(networks) > 1
    return tuple(
        Offer(names.get(role, f"{path.stem}-{role}" if several else path.stem), role, network, protocol)
        for network, (role, protocol) in zip(networks, stated, strict=True)
    )


def offer_of(path: str | Path, role: str | None = None) -> Offer:
    """The one network of a Keras file, or that of a role. Raises WeightsError, as for :func:`offers`."""
    found = offers(path)
    roles = ", ".join(offer.role for offer in found)
    if role is None:
        if len(found) > 1:
            fix = "say which by its role, or import them all into files of their own: `synthseg weights import`"
            raise WeightsError(path, found=f"{len(found)} networks in one file ({roles})", fix=fix)
        return found[0]
    for offer in found:
        if offer.role == role:
            return offer
    fix = f"use weights of role {role} (`synthseg weights list` shows each file's role)"
    raise WeightsError(path, found=f"weights of role {roles}, none of role {role!r}", fix=fix)


def read_offer(offer: Offer) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A network's tensors under our names and its whole card, whose hash is that of the same tensors saved by us."""
    card, path = offer.card(), offer.network.path
    tensors = read_tensors(offer.network)
    card["source"]["sha256"] = file_hash(path)
    return tensors, complete_card(card, sha256=hash_arrays(tensors), subject=path)


def hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """As :func:`synthseg.weights.files.hash_tensors`, without torch."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}\0torch.{array.dtype}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, remembered while the file does not change (robust networks share one of 214 MB)."""
    stat = path.stat()
    return _file_hash(str(path.resolve()), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=64)
def _file_hash(path: str, _modified: int, _size: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _role_and_protocol(
    network: KerasNetwork, given: Mapping[int, LabelProtocol], groups: set[int | None]
) -> tuple[str, LabelProtocol | None]:
    """What a network is for: by its prefix; S1 by its tissue groups, or because others of its file take them."""
    outputs = network.architecture["out_channels"]
    protocol = given.get(outputs)
    role = PREFIX_ROLES.get(network.prefix)
    if role is None:
        usual = outputs in PROTOCOLS["tissues"] and (protocol is None or protocol.name == TISSUES)
        coarse = usual or outputs in groups
        role = "tissues" if coarse and network.architecture["in_channels"] == 1 else "structures"
    name = PROTOCOLS[role].get(outputs)
    return role, protocol or (load_protocol(name) if name else None)
