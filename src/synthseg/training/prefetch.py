"""Generation overlapped with training: on a GPU the next batch is made while the present step runs.

A thread of its own makes it on a stream of its own, so that neither the training step nor the Python code that launches
it waits for generation. A batch depends on its request alone (seed, step, elements): what is seen, and in which order,
is what it would be without overlap. On a CPU, where both would share the cores, batches are made when they are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import torch
from torch import Tensor

Make = Callable[[int, Sequence[int]], Any]


class _Begun(NamedTuple):
    """A batch under way."""

    request: tuple[int, tuple[int, ...]]  # step, elements
    made: Future[tuple[Any, torch.cuda.Event | None]]  # the batch, and when the GPU will have finished it


class Prefetch:
    """Batches, one of them ahead of time.

    Args:
        make: gives the batch of a step's elements (``Task.batch``).
        device: where batches are made.
        overlap: make the batch that was begun in a thread; by default on a GPU only.

    The order of calls in a training loop: ``take`` a batch, launch the step on it, ``begin`` the next. Memory: two
    batches. Generation of the next waits on the GPU until the present step starts, however far Python runs ahead.
    """

    def __init__(self, make: Make, device: torch.device, *, overlap: bool | None = None) -> None:
        self._make, self._device = make, device
        self._overlap = device.type == "cuda" if overlap is None else overlap
        self._begun: _Begun | None = None
        self._thread = ThreadPoolExecutor(1, "generation") if self._overlap else None
        self._side: torch.cuda.Stream | None = None
        self._taken: torch.cuda.Event | None = None
        if self._overlap and device.type == "cuda":
            self._side = torch.cuda.Stream(device)
            self._side.wait_stream(torch.cuda.current_stream(device))  # the bank has arrived

    def begin(self, step: int, elements: Sequence[int]) -> None:
        """Start making a batch, if this prefetch overlaps; the next ``take`` should ask for it."""
        if self._overlap:
            self._drop()
            self._begun = self._start(step, elements)

    def take(self, step: int, elements: Sequence[int]) -> Any:
        """The batch of a step's elements: the one begun if it is that one, else made now.

        Raises: whatever ``make`` raised, also where that was in its thread.
        """
        if not self._overlap:
            return self._make(step, elements)
        begun = self._begun
        if begun is None or begun.request != (step, tuple(elements)):
            self._drop()
            begun = self._start(step, elements)
        self._begun = None
        batch, ready = begun.made.result()
        if ready is not None:
            training = torch.cuda.current_stream(self._device)
            training.wait_event(ready)
            for tensor in _tensors(batch):  # its memory is of the side stream, which must not reuse it too early
                tensor.record_stream(training)
            self._taken = training.record_event()
        return batch

    def close(self) -> None:
        """Wait for what is under way, drop it, and end the thread."""
        self._drop()
        if self._thread is not None:
            self._thread.shutdown()

    def _start(self, step: int, elements: Sequence[int]) -> _Begun:
        assert self._thread is not None
        made = self._thread.submit(self._work, step, elements, self._taken)
        return _Begun((step, tuple(elements)), made)

    def _work(
        self, step: int, elements: Sequence[int], after: torch.cuda.Event | None
    ) -> tuple[Any, torch.cuda.Event | None]:
        """In the thread: device and stream are its own, and must be chosen here."""
        if self._side is None:
            return self._make(step, elements), None
        with torch.cuda.device(self._device), torch.cuda.stream(self._side):
            if after is not None:
                self._side.wait_event(after)
            batch = self._make(step, elements)
            return batch, self._side.record_event()

    def _drop(self) -> None:
        """Forget a batch nobody asked for, its error included: making it again would raise that again."""
        if self._begun is not None:
            wait([self._begun.made])
            self._begun = None


def _tensors(batch: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and mappings."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        yield from _tensors(list(batch.values()))
    elif isinstance(batch, (tuple, list)):
        for part in batch:
            yield from _tensors(part)
