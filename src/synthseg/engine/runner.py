"""A network over a whole image, its largest tensors slab by slab: posteriors of any planes, when they are asked for.

Level 0 of a UNet works on slabs along X, with as many planes more on either side (the halo) as its convolutions look
beyond; what they say about the halo itself is cropped. At the volume's own border nothing is added: the zeros that
convolutions assume there are the plain network's. The answer is therefore the plain network's up to rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from synthseg.engine import program
from synthseg.engine.backend import Backend, Parts
from synthseg.engine.lasting import give_back_freed_memory
from synthseg.engine.moments import Moments
from synthseg.engine.planes import Planes, halo_of, slabs, window
from synthseg.engine.softmax import softmax_planes
from synthseg.errors import UsageError
from synthseg.networks.unet import UNet, gather_blocks, spread_blocks


class Runner:
    """A network made ready by a backend, once for many images.

    Args:
        network: in eval mode; [1, C_in, X, Y, Z] -> logits [1, C, X, Y, Z]. What is not a UNet of two levels or more is
            run whole, by torch, on the backend's device.
    Raises: SynthsegError where this machine cannot run the backend.
    """

    def __init__(self, network: nn.Module, backend: Backend) -> None:
        self.network, self.backend = network, backend
        self.parts: Parts | None = None
        if backend.name != "plain" and program.can_run(network):
            self.parts = backend.prepare(network)
        else:
            network.to(backend.device)

    @torch.no_grad()
    def begin(self, inputs: Tensor, *, slab: int | None = None, recompute: bool = False) -> Pass:
        """Run the network up to where single planes are asked for.

        Args:
            inputs: [1, C_in, X, Y, Z], on any device.
            slab: voxels along X worked on at a time, a multiple of 2 * patch; None is all at once. Networks that are
                run whole take no notice.
            recompute: do not keep level 0's features for the decoder, compute them again: less memory, more time.
        Raises: ShapeError for inputs the network does not take; UsageError for a slab that is no such multiple.
        """
        inputs = inputs.to(self.backend.device, torch.float32, memory_format=torch.channels_last_3d)
        if self.parts is None:
            return _WholePass(self.network, inputs, self.backend.precision)
        assert isinstance(self.network, UNet)
        return _SlabPass(self.network, self.parts, inputs, slab, recompute)


class Pass(ABC):
    """A network's posteriors for one image, plane by plane.

    ``shape``: [X, Y, Z] in voxels; ``channels``: number of classes.
    """

    shape: tuple[int, int, int]
    channels: int

    @abstractmethod
    def posteriors(self, start: int, stop: int) -> Tensor:
        """Posteriors of planes start..stop - 1 along X, multiples of 2 * patch voxels.

        Take each plane once, in ascending or descending order: what no later plane needs is then freed. Any other order
        and repeated planes give the same numbers, but may have to compute from the image again.
        Returns: [stop - start, Y, Z, C] float32, contiguous, sums to 1 over C, on the backend's device; the caller's to
            overwrite.
        Raises: UsageError for planes that are no such multiples or not in the image.
        """


class _WholePass(Pass):
    """All posteriors at once: for networks that are not a program."""

    def __init__(self, network: nn.Module, inputs: Tensor, precision: str) -> None:
        reduced = precision == "bfloat16"
        with torch.autocast(inputs.device.type, torch.bfloat16) if reduced else nullcontext():
            logits: Tensor = network(inputs)
        _, self.channels, *sides = logits.shape
        self.shape = (sides[0], sides[1], sides[2])
        self._posteriors = softmax_planes(logits.float())

    def posteriors(self, start: int, stop: int) -> Tensor:
        _check_planes(start, stop, self.shape[0], 1)
        return self._posteriors[start:stop].clone()


class _SlabPass(Pass):
    """A UNet's program with level 0 in slabs. Positions here are planes of blocks along X (voxels, for patch 1)."""

    def __init__(self, net: UNet, parts: Parts, inputs: Tensor, slab: int | None, recompute: bool) -> None:
        net._check(inputs)
        config = net.config
        self._net, self._parts = net, parts
        self.shape = (inputs.shape[2], inputs.shape[3], inputs.shape[4])
        self.channels = config.out_channels
        self._blocks = gather_blocks(inputs, config.patch)
        self._total = self._blocks.shape[2]
        self._slab = _thickness(slab, config.patch, self._total)
        self._halo = halo_of(config)
        kept = program.keeps_features(net) and not recompute
        self._features = Planes(self._total, self._halo) if kept else None
        pooled = self._enter_all()
        self._trim()
        self._low = parts.core(pooled)
        del pooled
        self._trim()
        self._last: Planes | None = None  # what leave returned, where the head cannot follow at once
        fixed = program.fixed_norm(net.up[-1].norm)
        if fixed is None or self._slab == self._total:
            fixed = self._leave_all(fixed)
        self._scale, self._shift = fixed

    @torch.no_grad()
    def posteriors(self, start: int, stop: int) -> Tensor:
        patch = self._net.config.patch
        _check_planes(start, stop, self.shape[0], 2 * patch)
        first, last = start // patch, stop // patch
        z = self._last.get(first, last) if self._last is not None else None
        if z is None:
            z = self._leave(first, last)
        elif self._last is not None:
            self._last.taken(first, last)
        return softmax_planes(spread_blocks(self._parts.head(z, self._scale, self._shift), patch))

    def _trim(self) -> None:
        """Between slabs and core: the tensors of the one do not fit where the other's were."""
        if self._slab < self._total:
            give_back_freed_memory()

    def _enter_all(self) -> Tensor:
        """Level 0 of the encoder. Returns: what core is given, [1, F, X/2, Y/2, Z/2], normed."""
        norm = self._net.down[0].norm
        fixed = program.fixed_norm(norm)
        moments = Moments()
        pooled: Tensor | None = None
        for start, stop in slabs(self._total, self._slab):
            features, part = self._enter(start, stop)
            if fixed is None:
                moments.add(features)
            if self._features is not None:
                self._features.put(start, features)
            del features  # before the next slab's are made
            if stop - start == self._total:
                pooled = part
            else:
                if pooled is None:
                    sides = (1, part.shape[1], self._total // 2, *part.shape[3:])
                    pooled = torch.empty(sides, device=part.device, memory_format=torch.channels_last_3d)
                pooled[:, :, start // 2 : stop // 2] = part
        assert pooled is not None
        scale, shift = (v.to(pooled.device).view(1, -1, 1, 1, 1) for v in fixed or moments.scale_and_shift(norm))
        return torch.addcmul(shift, pooled, scale, out=pooled)

    def _enter(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Features of planes start..stop - 1 and the same pooled."""
        first, last = window(start, stop, total=self._total, halo=self._halo, thickness=self._slab)
        features, pooled = self._parts.enter(self._blocks[:, :, first:last])
        return (
            features[:, :, start - first : stop - first],
            pooled[:, :, (start - first) // 2 : (stop - first) // 2],
        )

    def _leave_all(self, fixed: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """The last decoder level, kept. Returns: scale and shift of its norm, of these very features if not fixed."""
        self._last = Planes(self._total, 0)
        moments = Moments()
        for start, stop in slabs(self._total, self._slab):
            z = self._leave(start, stop)
            if fixed is None:
                moments.add(z)
            self._last.put(start, z)
            del z
        return fixed or moments.scale_and_shift(self._net.up[-1].norm)

    def _leave(self, start: int, stop: int) -> Tensor:
        """Planes start..stop - 1 of the last decoder level; level 0's features that only they needed are dropped."""
        first, last = window(start, stop, total=self._total, halo=self._halo, thickness=self._slab)
        skip: Tensor | None = None
        if program.keeps_features(self._net):
            skip = self._features.get(first, last) if self._features is not None else None
            if skip is None:
                skip, _ = self._enter(first, last)
        if self._features is not None:
            self._features.taken(start, stop)
        z = self._parts.leave(skip, self._low[:, :, first // 2 : last // 2])
        return z[:, :, start - first : stop - first]


def _thickness(slab: int | None, patch: int, total: int) -> int:
    if slab is None or slab >= total * patch:
        return total
    if slab < 1 or slab % (2 * patch):
        raise UsageError("slab", found=f"{slab} voxels", fix=f"give a multiple of {2 * patch}, or None")
    return slab // patch


def _check_planes(start: int, stop: int, total: int, multiple: int) -> None:
    if not 0 <= start < stop <= total or start % multiple or stop % multiple:
        found = f"{start} to {stop} of {total}"
        raise UsageError("planes of posteriors", found=found, fix=f"give multiples of {multiple} within the image")
