"""Where the networks of a run are carried out, in slabs of what thickness, and what to do when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar

import torch

from synthseg.engine.choose import Choice, choose, make_backend
from synthseg.engine.memory import Plan, available_bytes, format_size, plan, resident_bytes, thinnest
from synthseg.engine.program import can_run
from synthseg.errors import SynthsegError, WeightsError
from synthseg.inference.bundle import main_of
from synthseg.inference.ensemble import members_of
from synthseg.inference.model import Model
from synthseg.inference.needs import BYTES_A_VOXEL, Needs
from synthseg.inference.predict import OutOfMemory, enough_memory, forget_frames
from synthseg.inference.segmentation import Ran
from synthseg.networks.unet import UNet, UNetConfig
from synthseg.weights.store import ALIASES

T = TypeVar("T")
SHARE = 0.9  # of the memory that is free
# For the passes on the CPU, where nobody set a limit: with what else a process holds this fits into 4 GB.
SOFT_BYTES = int(2.4 * 2**30)
APART = ("quality", "locator")  # roles whose networks do not see the window: they have small images of their own


@dataclass(frozen=True)
class Placement:
    """The networks of a run on one device.

    Attributes:
        models: by role, each run by a backend on ``device``.
        limit: bytes that the process may take in all, on a GPU of its memory; None takes the fastest slabs that what is
            free allows.
        thin: the thinnest slabs there are, whatever the limit.
        note: why this is not what was planned; empty for the first choice.
    """

    models: Mapping[str, Model]
    choice: Choice
    limit: int | None = None
    thin: bool = False
    note: str = ""

    @property
    def device(self) -> torch.device:
        return self.choice.device

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"

    @property
    def limits_main_memory(self) -> bool:
        return self.limit is not None and self.on_cpu

    @property
    def ran(self) -> dict[str, Ran]:
        """What carries out each network, by role."""
        backends = {role: model.backend for role, model in self.models.items()}
        return {role: Ran(one.name, str(one.device), one.precision) for role, one in backends.items()}

    def plan_of(
        self, model: Model, shape: tuple[int, ...], *, passes: int = 1, needs: Needs | None = None
    ) -> Plan | None:
        """How a network's passes over an image [X, Y, Z] are cut into slabs; None for one that cannot be cut.

        Within the limit, or what is free, if that is enough for the thinnest slabs (:meth:`require_room` says whether
        it is): else the thinnest.

        Args:
            needs: of the scan, beside the networks; None for a first look.
        """
        config = cuttable(model)
        if config is None:
            return None
        sides = (shape[0], shape[1], shape[2])
        least = thinnest(config, sides, passes=passes)
        if self.thin:
            return least
        budget = self._budget(sides, needs)
        if budget is not None and budget < least.bytes:
            return least
        soft = SOFT_BYTES if self.limit is None and self.on_cpu else None
        return plan(config, sides, passes=passes, budget_bytes=budget, soft_bytes=soft)

    def require_room(
        self, passes: Sequence[tuple[Model, int]], shape: tuple[int, ...], needs: Needs | None, subject: str
    ) -> None:
        """Refuse a scan before the networks run, if the limit is too low for it.

        Args:
            passes: the networks that will see the image [X, Y, Z], and how many passes of each are held.
            needs: as for :meth:`plan_of`.
        Raises: SynthsegError with what is needed. What networks that cannot be cut take is not known, and not counted.
        """
        if self.limit is None or self.thin:
            return
        held = resident_bytes() if self.on_cpu else 0
        sides = (shape[0], shape[1], shape[2])
        networks, largest = 0, None
        for model, count in passes:
            config = cuttable(model)
            least = 0 if config is None else thinnest(config, sides, passes=count).bytes
            if least > networks:
                networks, largest = least, model
        networks += self._beside(sides, needs)
        results = needs.results if self.on_cpu and needs is not None else 0
        needed = held + max(networks, results)
        if needed <= self.limit:
            return
        found = f"a limit of {format_size(self.limit)}, where {format_size(needed)} are needed"
        if needs is not None and networks < results:
            savings = self._savings_in_results(needs)
        else:
            savings = self._savings_in_networks(largest)
        ways = [f"give a --memory of {needed // 2**20 + 1}M or more", *savings]
        raise SynthsegError(subject, found=found, fix=", or ".join(ways))

    def _savings_in_results(self, needs: Needs) -> list[str]:
        """What else makes the peak smaller, where that is due to the results."""
        ways = ["leave out --posteriors and --tissue-maps"] if needs.maps else []
        return ways + (["leave out --parc"] if needs.parcels else [])

    def _savings_in_networks(self, largest: Model | None) -> list[str]:
        """The same where it is due to the networks, of which ``largest`` takes most."""
        main = main_of(self.models)
        if largest is None:
            return []
        if largest is self.models.get("parcels"):
            return ["leave out --parc"]
        if len(members_of(self.models)) > 1:
            return ["merge fewer networks"]
        if "guided" in self.models:
            return ["use the default mode with --weights compact"]
        return ["use --weights compact"] if largest is main and main.name == ALIASES["default"] else []

    def _budget(self, sides: tuple[int, int, int], needs: Needs | None) -> int | None:
        """Bytes left for passes; None where there is no telling."""
        beside = self._beside(sides, needs)
        if self.limit is not None:
            return self.limit - beside - (resident_bytes() if self.on_cpu else 0)
        # What is free, or a machine without swap would kill the process instead of raising an error.
        free = available_bytes() if self.on_cpu else free_device_bytes(self.device)
        return None if free is None else int(free * SHARE) - beside

    def _beside(self, sides: tuple[int, int, int], needs: Needs | None) -> int:
        """What lies on the networks' device beside their passes."""
        if needs is None:
            return BYTES_A_VOXEL * sides[0] * sides[1] * sides[2] if self.on_cpu else 0
        return needs.beside + (needs.gathered if self.on_cpu else 0)


def cuttable(model: Model) -> UNetConfig | None:
    """The network's config if it is run in slabs; None for one that is run whole."""
    network = model.network
    if model.backend.name == "plain" or not can_run(network) or not isinstance(network, UNet):
        return None
    return network.config


def free_device_bytes(device: torch.device) -> int | None:
    """Memory that a GPU has left; None where it does not say."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None


def release(device: torch.device) -> None:
    """Give a GPU the memory back that torch keeps for reuse."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def passes_of(models: Mapping[str, Model], *, flip: bool, merge: str = "mean") -> list[tuple[Model, int]]:
    """The networks that see the window, and how many passes are held side by side while each of them runs.

    Those of several networks whose mean is taken all at once; by another rule of ``merge`` they run one after another.
    """
    members = members_of(models)
    held = (2 if flip else 1) * (len(members) if merge == "mean" else 1)
    return [(model, held if role in members else 1) for role, model in models.items() if role not in APART]


def place(models: Mapping[str, Model], choice: Choice, *, limit: int | None = None) -> Placement:
    """Put the networks where ``choice`` says.

    In int8 those without activation ranges stay in float32, but for those that give the structures.
    Raises: SynthsegError if the main network has no ranges for int8, or the backend does not work here; WeightsError
        for ranges that cannot be read, or that a network to be merged lacks, where int8 is asked for.
    """
    main, members = main_of(models), members_of(models)
    placed = {}
    for role, model in models.items():
        own = choice
        if choice.precision == "int8" and model.ranges_problem is not None:
            raise model.ranges_problem
        if choice.precision == "int8" and not model.ranges and model is not main:
            if role in members:
                fix = "add them: synthseg weights calibrate NAME --bank BANK -o FILE; or leave int8 out"
                raise WeightsError(f"weights {model.name}", found="no activation ranges for int8", fix=fix)
            own = choose("auto", precision="float32", device=choice.device, threads=choice.threads)
        placed[role] = model.on(make_backend(own, ranges=model.ranges))
    return Placement(placed, choice, limit)


def fallbacks(first: Placement) -> Iterator[Placement]:
    """What to try, in this order, when memory runs out: the thinnest slabs where any network can be cut, then the CPU.

    On the CPU there is no limit: the first one's was that of a GPU. The networks move there when that step is asked
    for; :func:`bring_back` undoes it.
    """
    cut = any(cuttable(model) for model in first.models.values())
    if cut:
        yield replace(first, thin=True, note=f"not enough memory on {first.device}: segmented in the thinnest slabs")
    if not first.on_cpu:
        cpu = torch.device("cpu")
        choice = choose("auto", precision=first.choice.precision, device=cpu, threads=first.choice.threads)
        even = " even in thin slabs" if cut else ""
        note = f"not enough memory on {first.device}{even}: segmented on the CPU"
        yield replace(place(first.models, choice), note=note)


def bring_back(placement: Placement) -> None:
    """Move the networks to where ``placement`` has them, after another one used them."""
    for model in placement.models.values():
        model.network.to(model.device)


def wherever_there_is_memory(
    planned: Placement, attempt: Callable[[Placement], T], subject: str, shape: Sequence[int]
) -> tuple[T, Placement]:
    """What ``attempt`` gives with the planned placement, else with what to try when memory runs out.

    Args:
        subject, shape: of the scan, in voxels, for the error.
    Returns: it, and the placement it came with. The networks are then back where they were planned to be.
    Raises: OutOfMemory when nothing helps.
    """
    failed: OutOfMemory | None = None
    placement = planned
    try:
        for placement in chain([planned], fallbacks(planned)):
            try:
                with enough_memory(subject, placement.device, shape):
                    return attempt(placement), placement
            except OutOfMemory as error:
                forget_frames(error)  # or the tensors of this attempt would be there in the next one
                failed = error
            release(placement.device)
    finally:
        if placement.device != planned.device:
            bring_back(planned)
    assert failed is not None  # what is planned is always tried
    raise failed
