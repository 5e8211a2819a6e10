"""Where the networks of a run are carried out, in slabs of what thickness, and what to do when memory runs out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from synthseg.engine.choose import Choice, choose, make_backend
from synthseg.engine.memory import Plan, available_bytes, format_size, plan, resident_bytes, thinnest
from synthseg.engine.program import can_run
from synthseg.errors import SynthsegError
from synthseg.inference.bundle import main_of
from synthseg.inference.model import Model
from synthseg.networks.unet import UNet

BYTES_A_VOXEL = 90  # of the working grid, for what is gathered of posteriors and the clean-up; measured: 40 to 80
SHARE = 0.9  # of the memory that is free


@dataclass(frozen=True)
class Placement:
    """The networks of a run on one device.

    Attributes:
        models: by role, each run by a backend on ``device``.
        limit: bytes that the process may take in all; None takes the fastest slabs that what is free allows.
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

    def plan_of(self, model: Model, shape: tuple[int, ...], *, passes: int = 1, subject: str = "scan") -> Plan | None:
        """How a network's passes over an image [X, Y, Z] are cut into slabs; None for one that cannot be cut.

        Raises: SynthsegError if the limit is too low even for the thinnest slabs.
        """
        network = model.network
        if model.backend.name == "plain" or not can_run(network) or not isinstance(network, UNet):
            return None
        sides = (shape[0], shape[1], shape[2])
        if self.thin:
            return thinnest(network.config, sides, passes=passes)
        on_cpu = self.device.type == "cpu"
        beside = BYTES_A_VOXEL * sides[0] * sides[1] * sides[2] if on_cpu else 0
        if self.limit is None:
            # What is free, or a machine without swap would kill the process instead of raising an error.
            free = available_bytes() if on_cpu else free_device_bytes(self.device)
            budget = None if free is None else int(free * SHARE) - beside
        else:
            budget = self.limit - beside - (resident_bytes() if on_cpu else 0)
        try:
            return plan(network.config, sides, passes=passes, budget_bytes=budget)
        except SynthsegError as error:
            least = thinnest(network.config, sides, passes=passes)
            if self.limit is None:
                return least
            needed = format_size(self.limit - (budget or 0) + least.bytes)
            found = f"a limit of {format_size(self.limit)}, where {needed} are needed"
            raise SynthsegError(subject, found=found, fix="give a higher --memory, or use --weights compact") from error


def free_device_bytes(device: torch.device) -> int | None:
    """Memory that a GPU has left; None where it does not say."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None


def place(models: Mapping[str, Model], choice: Choice, *, limit: int | None = None) -> Placement:
    """Put the networks where ``choice`` says.

    In int8 those without activation ranges stay in float32, but for the one that gives the structures.
    Raises: SynthsegError if the main network has no ranges for int8, or the backend does not work here.
    """
    main = main_of(models)
    placed = {}
    for role, model in models.items():
        own = choice
        if choice.precision == "int8" and not model.ranges and model is not main:
            own = choose("auto", precision="float32", device=choice.device, threads=choice.threads)
        placed[role] = model.on(make_backend(own, ranges=model.ranges))
    return Placement(placed, choice, limit)


def fallbacks(first: Placement) -> list[Placement]:
    """What to try, in this order, when memory runs out: the thinnest slabs, then the CPU."""
    steps = [replace(first, thin=True, note=f"not enough memory on {first.device}: segmented in the thinnest slabs")]
    if first.device.type != "cpu":
        precision = "float32" if first.choice.precision == "int8" else first.choice.precision
        choice = choose("auto", precision=precision, device=torch.device("cpu"), threads=first.choice.threads)
        note = f"not enough memory on {first.device} even in thin slabs: segmented on the CPU"
        steps.append(replace(place(first.models, choice, limit=first.limit), note=note))
    return steps
