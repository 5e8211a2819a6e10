"""Which networks ``mri_synthseg`` uses, and what carries them out: our pipeline, or the original's steps one by one.

The original's files are looked for in the folder of ``--model-dir``, then where every weights file is looked for
(``weights/store.py``). Without any of them the package's own networks answer, and a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from synthseg.cli.original.loop import Engine
from synthseg.cli.original.parser import Options
from synthseg.errors import UsageError, WeightsError
from synthseg.files import at_home
from synthseg.inference.modes import HIERARCHY, LOCATOR, ONE_NETWORK
from synthseg.weights.card import read_card
from synthseg.weights.hdf5 import is_keras
from synthseg.weights.original import FAMILIES, MEMBERS
from synthseg.weights.places import use_model_dir
from synthseg.weights.store import folders, locate

if TYPE_CHECKING:
    from synthseg.inference.bundle import AnyWeights, Weights
    from synthseg.inference.model import Model
    from synthseg.inference.structures import Structure

OWN = "default"  # of --weights: the networks that come with the package
WHERE = "give their folder with --model-dir, or set FREESURFER_HOME where FreeSurfer is installed"


@dataclass(frozen=True)
class Choice:
    """Networks as :class:`Segmenter` takes them: the structures' (None: the package's own), parcels, quality."""

    weights: Weights
    parcels: bool | AnyWeights
    quality: bool | AnyWeights
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """What segments; what its labels can be; the names of its networks; what there is to say about them."""

    engine: Engine
    structures: tuple[Structure, ...]
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()


def load(options: Options) -> Loaded:
    """Find the networks and load them.

    Raises: WeightsError where networks are missing, damaged, or do not fit each other; UsageError for a folder or file
        that is not there.
    """
    from synthseg.inference.original.like import LikeOriginal

    use_model_dir(options.model_dir)
    choice = choose(options)
    if options.strict_original:
        return _strict(options, choice)
    engine = LikeOriginal(
        choice.weights,
        robust=options.robust,
        fast=options.fast,
        ct=options.ct,
        parcels=choice.parcels,
        quality=choice.quality,
        crop=options.crop,
        keep_geometry=options.keepgeom,
        device=options.device,
        threads=options.threads,
        backend=options.backend,
        memory=options.memory,
    )
    return Loaded(engine, engine.structures, _names(engine.segmenter.models), choice.notes)


def _strict(options: Options, choice: Choice) -> Loaded:
    from synthseg.inference.bundle import gather, structures_of
    from synthseg.inference.original.like import mode_of
    from synthseg.inference.original.strict import StrictSegmenter

    mode = mode_of(robust=options.robust, fast=options.fast)
    models = gather(mode, choice.weights, parcels=choice.parcels, quality=choice.quality, locator=False)
    engine = StrictSegmenter(
        models,
        fast=options.fast,
        ct=options.ct,
        crop=options.crop,
        device=options.device,
        threads=options.threads,
        backend=options.backend,
    )
    return Loaded(engine, structures_of(models), _names(models), choice.notes)


def choose(options: Options) -> Choice:
    """Which networks to use: those named, else the original's, else the package's own.

    Raises: WeightsError where the original's are needed and missing.
    """
    if options.weights is not None:
        if options.weights in FAMILIES:
            return _originals(options, options.weights)
        weights = None if options.weights == OWN else options.weights
        return Choice(weights, options.parc, options.qc is not None)
    if options.model is not None:
        return _given(options, at_home(options.model))
    family = FAMILIES[options.family]
    if any(_is_there(name) for name in family.values()):
        return _originals(options, options.family)
    if options.v1 or options.strict_original:
        flag = "--strict-original" if options.strict_original else "--v1"
        files = ", ".join(dict.fromkeys(MEMBERS[family[role]][0] for role in _roles(options)))
        raise WeightsError(flag, found=f"none of the original's networks ({files})", fix=WHERE)
    note = (
        "the original's networks were not found: these are synthseg's own, which work at 2 mm. Results resemble the "
        f"original's, their numbers are others. For the original's networks {WHERE}; --weights {OWN} chooses these "
        "without a note"
    )
    return Choice(None, options.parc, options.qc is not None, (note,))


def _roles(options: Options) -> list[str]:
    """What networks are needed for, in the order in which they run."""
    main = HIERARCHY if options.robust else ONE_NETWORK
    wanted = {*main, *(["parcels"] if options.parc else []), *(["quality"] if options.qc is not None else [])}
    return [role for role in FAMILIES["synthseg-2.0"] if role in wanted]


def _originals(options: Options, family: str) -> Choice:
    """The original's networks, all that are needed. Raises: WeightsError naming the first file that is missing."""
    names = FAMILIES[family]
    for role in _roles(options):
        if role not in names:
            raise WeightsError(f"weights {family}", found=f"no network for {role}", fix="use synthseg-2.0")
        if not _is_there(names[role]):
            file = MEMBERS[names[role]][0]
            fix = f"put it beside the others, or use --weights {OWN}: the networks that come with the package, for all"
            raise WeightsError(file, found=f"no such file, which the network for {role} is in", fix=fix)
    main = HIERARCHY if options.robust else ONE_NETWORK
    parcels: bool | str = options.parc and names["parcels"]
    quality: bool | str = options.qc is not None and names["quality"]
    return Choice({role: names[role] for role in main}, parcels, quality)


def _given(options: Options, path: Path) -> Choice:
    """The networks of a file for the structures, beside them the original's where they fit it, or the package's own."""
    if not path.is_file():
        raise UsageError(f"--model {path}", found="no such file", fix="check the path")
    keras = is_keras(path)
    main = HIERARCHY if options.robust else ONE_NETWORK
    # A file of ours holds one network: in robust mode it says itself which of the three it replaces.
    weights: Weights = dict.fromkeys(main, path) if keras or not options.robust else path
    fits = keras or abs(float(read_card(path)["spacing_mm"]) - 1) < 1e-6
    parcels = options.parc and _beside("parcels", path, fits=fits)
    quality = options.qc is not None and _beside("quality", path, fits=fits)
    return Choice(weights, parcels, quality)


def _beside(role: str, given: Path, *, fits: bool) -> bool | str:
    """What goes with a file for the structures: the original's where it works at 1 mm as they do, else the package's.

    Raises: WeightsError where the original's is needed and missing.
    """
    if not fits:
        return True
    name = FAMILIES["synthseg-2.0"][role]
    if not _is_there(name):
        found = f"no such file, which the network for {role} beside {given.name} is in"
        raise WeightsError(MEMBERS[name][0], found=found, fix=WHERE)
    return name


def _is_there(name: str) -> bool:
    """Whether one of the original's networks is anywhere. Raises: WeightsError for a folder that is not there."""
    folders()  # what is wrong with a folder is not the same as a missing file
    try:
        locate(name)
    except WeightsError:
        return False
    return True


def _names(models: Mapping[str, Model]) -> tuple[str, ...]:
    return tuple(model.name for role, model in models.items() if role != LOCATOR)
