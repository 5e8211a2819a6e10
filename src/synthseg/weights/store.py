"""Where weights live and how a name becomes a file. No torch here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthseg.errors import WeightsError
from synthseg.files import at_home
from synthseg.weights.card import FOREIGN_SUFFIXES, ROLES, read_card, require_role, role_of
from synthseg.weights.hdf5 import KERAS_SUFFIXES, is_keras
from synthseg.weights.keras import NoNetworkError
from synthseg.weights.original import FAMILIES, FILES, MEMBERS, Offer, offer_of, offers, read_offer
from synthseg.weights.places import FOLDER_VARIABLE, FREESURFER, FREESURFER_VARIABLE, asked_folders, freesurfer_models
from synthseg.weights.places import MODEL_DIR_VARIABLE as MODEL_DIR_VARIABLE

SHIPPED_DIR = Path(__file__).parent / "shipped"
# Short names for shipped files; "compact" takes an eighth of the operations. Which weights each role has otherwise is
# said in inference/modes.toml.
ALIASES = {"default": "synthseg-2mm", "compact": "synthseg-2mm-compact"}
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class WeightsEntry:
    """One network that a name leads to."""

    name: str  # what to type: the file's stem, or the name of one of the original's networks
    path: Path
    source: str  # "model-dir", "folder" (SYNTHSEG_WEIGHTS_DIR), "freesurfer" or "shipped"
    # None when the file cannot be read. Of a Keras file: without sha256, for which all numbers would have to be read.
    card: dict[str, Any] | None
    problem: str | None = None  # why it cannot be read

    @property
    def role(self) -> str | None:
        """What the network is for (see ``card.ROLES``); None when the card cannot be read."""
        return None if self.card is None else role_of(self.card)

    @property
    def alias(self) -> str | None:
        """ "default" or "compact", for the weights that these names stand for."""
        return next((alias for alias, name in ALIASES.items() if name == self.name), None)


@dataclass(frozen=True)
class Located:
    """The file that a name or path stands for, and which of its networks; None for the only one."""

    path: Path
    role: str | None = None


@dataclass(frozen=True)
class Folder:
    """A folder to look in; FreeSurfer's only for the original's files (it holds networks of other programs too)."""

    path: Path
    source: str

    def find(self, name: str) -> Located | None:
        """A network of a name in this folder."""
        anything = self.source != FREESURFER
        own = self.path / f"{name}{SUFFIX}"
        if anything and own.is_file():
            return Located(own)
        file, role = MEMBERS.get(name, ("", None))
        if file and (self.path / file).is_file():
            return Located(self.path / file, role)
        if anything:
            return self._find_keras(name)
        return None

    def _find_keras(self, name: str) -> Located | None:
        """A Keras file of that name, or NAME of NAME-ROLE if it holds several networks, one of them of that role."""
        for suffix in KERAS_SUFFIXES:
            if (path := self.path / f"{name}{suffix}").is_file():
                return Located(path)
        stem, _, role = name.rpartition("-")
        for suffix in KERAS_SUFFIXES if stem and role in ROLES else ():
            if (path := self.path / f"{stem}{suffix}").is_file() and name in _names_in(path):
                return Located(path, role)
        return None

    def files(self) -> tuple[list[Path], list[Path]]:
        """Our files, and Keras' files, by name."""
        if self.source == FREESURFER:
            return [], [self.path / name for name in FILES if (self.path / name).is_file()]
        keras = [path for suffix in KERAS_SUFFIXES for path in self.path.glob(f"*{suffix}")]
        return sorted(self.path.glob(f"*{SUFFIX}")), sorted(keras)


def find_weights(name_or_path: str | Path) -> Path:
    """The file that a name or path stands for; see :func:`locate`."""
    return locate(name_or_path).path


def locate(name_or_path: str | Path, role: str | None = None) -> Located:
    """The file that a name or path stands for, and which network of it.

    A ``Path``, or text with a folder or a file suffix in it, is a path. Anything else is a name, looked for first in
    the folder of ``--model-dir`` (SYNTHSEG_MODEL_DIR), then in that of the environment variable SYNTHSEG_WEIGHTS_DIR,
    then in FreeSurfer's, then among the shipped files. The names "default" and "compact" stand for those of
    :data:`ALIASES`; the names of :data:`synthseg.weights.original.FAMILIES` for a network of each role.

    Raises: WeightsError naming the missing file, or the unknown name and the known ones, or the role that a family
        does not have.
    """
    if is_path(name_or_path):
        path = at_home(name_or_path)
        if not path.exists():
            fix = f"check the path, or give one of the known names: {_known_names()}"
            raise WeightsError(path, found="no such file", fix=fix)
        return Located(path, role)
    name = ALIASES.get(str(name_or_path), str(name_or_path))
    if name in FAMILIES and role is not None:
        name = _member(name, role)
    for folder in folders():
        located = folder.find(name)
        if located is not None:
            return Located(located.path, located.role or role)
    if name in MEMBERS:
        raise _missing_member(name)
    raise WeightsError(
        f"weights {str(name_or_path)!r}"
        if name == name_or_path
        else f"weights {name!r} (what {str(name_or_path)!r} stands for)",
        found="no weights of that name",
        fix=f"use one of the known names ({_known_names()}), a path, or set {FOLDER_VARIABLE} to their folder",
    )


def list_weights() -> list[WeightsEntry]:
    """Every network that a name leads to, by name; unreadable ones included, with their problem. Tensors are not read.

    Keras files of other programs are left out.
    """
    entries: dict[str, WeightsEntry] = {}
    for folder in folders():
        ours, keras = folder.files()
        found = [_entry(path, folder.source) for path in ours]
        found += [entry for path in keras for entry in _keras_entries(path, folder.source)]
        for entry in found:
            entries.setdefault(entry.name, entry)
    return [entries[name] for name in sorted(entries)]


def card_of(located: Located) -> dict[str, Any]:
    """The whole card of weights, without torch. Of a Keras file, all numbers are read: its card holds their hash.

    Raises: WeightsError for a file that cannot be read, several networks without a role, and another role.
    """
    if located.path.is_file() and is_keras(located.path):
        return read_offer(offer_of(located.path, located.role))[1]
    card = read_card(located.path)
    if located.role is not None:
        require_role(role_of(card), (located.role,), located.path)
    return card


def roles_offered(name_or_path: str | Path) -> tuple[str, ...]:
    """What the networks under a name or in a Keras file are for, where there may be several; () for one of ours.

    Raises: WeightsError as for :func:`locate` (a family's files need not be there).
    """
    if not is_path(name_or_path) and str(name_or_path) in FAMILIES:
        return tuple(FAMILIES[str(name_or_path)])
    located = locate(name_or_path)
    if located.role is not None or not located.path.is_file() or not is_keras(located.path):
        return ()
    return tuple(offer.role for offer in offers(located.path))


def folders() -> list[Folder]:
    """The folders to look in, first one first. A folder that was asked for must exist."""
    return [*(Folder(path, source) for path, source in asked_folders()), Folder(SHIPPED_DIR, "shipped")]


def _entry(path: Path, source: str) -> WeightsEntry:
    try:
        return WeightsEntry(path.stem, path, source, read_card(path))
    except WeightsError as error:
        return WeightsEntry(path.stem, path, source, None, problem=error.found)


def _keras_entries(path: Path, source: str) -> Iterator[WeightsEntry]:
    try:
        found: tuple[Offer, ...] = offers(path)
    except NoNetworkError:
        return
    except WeightsError as error:
        for name in FILES.get(path.name, {"": path.stem}).values():
            yield WeightsEntry(name, path, source, None, problem=error.found)
        return
    for offer in found:
        try:
            yield WeightsEntry(offer.name, path, source, {**offer.card(), "sha256": None})
        except WeightsError as error:
            yield WeightsEntry(offer.name, path, source, None, problem=error.found)


def _names_in(path: Path) -> set[str]:
    """Names of the networks in a Keras file; none if it cannot be read, which is told where it is asked for itself."""
    try:
        return {offer.name for offer in offers(path)}
    except WeightsError:
        return set()


def _member(family: str, role: str) -> str:
    """The name of a family's network. Raises WeightsError where it has none."""
    try:
        return FAMILIES[family][role]
    except KeyError:
        found = f"no network of role {role!r}: {family} has {', '.join(FAMILIES[family])}"
        robust = role in ("tissues", "denoiser", "guided")
        fix = "robust networks exist for synthseg-2.0 only: use that, or leave robust out" if robust else "use another"
        raise WeightsError(f"weights {family!r}", found=found, fix=fix) from None


def _missing_member(name: str) -> WeightsError:
    """What was looked for, where, and how to get it: the original's files are distributed by others."""
    file, _ = MEMBERS[name]
    looked = [str(folder.path) for folder in folders() if folder.source != "shipped"]
    models = freesurfer_models()
    if models is not None and str(models) not in looked:
        looked.append(f"{models} (no folder that can be read; {FREESURFER_VARIABLE} names it)")
    where = f"in {', '.join(looked)}" if looked else f"({FREESURFER_VARIABLE} is not set, nor another folder)"
    return WeightsError(
        f"weights {name!r}",
        found=f"neither {file} nor {name}{SUFFIX} {where}",
        fix=f"set {FREESURFER_VARIABLE} where FreeSurfer is installed, or give the folder of {file} with --model-dir; "
        "the authors of SynthSeg distribute their files separately (see their page)",
    )


def is_path(name_or_path: str | Path) -> bool:
    """Whether text stands for a file, not for a name: see :func:`locate`."""
    if isinstance(name_or_path, Path):
        return True
    separators = ("/", os.sep)
    return any(mark in name_or_path for mark in separators) or name_or_path.lower().endswith(
        (SUFFIX, *KERAS_SUFFIXES, *FOREIGN_SUFFIXES)
    )


def _known_names() -> str:
    names: set[str] = set()
    for folder in folders():
        ours, keras = folder.files()
        names |= {path.stem for path in ours}
        names |= {name for path in keras for name in FILES.get(path.name, {"": path.stem}).values()}
    return ", ".join(sorted(names)) if names else "none is installed"
