"""Batches made ahead of time: the same ones, in the same order, and nothing lost when something goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from synthseg.training.prefetch import Prefetch
from synthseg.training.task import element_generator

CPU = torch.device("cpu")


class FakeTask:
    """Batches of random numbers that depend on step and elements alone, and a record of who made them when."""

    def __init__(self, device: torch.device = CPU) -> None:
        self.device = device
        self.made: list[tuple[int, tuple[int, ...]]] = []
        self.threads: set[int] = set()

    def batch(self, step: int, elements: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        self.made.append((step, tuple(elements)))
        self.threads.add(threading.get_ident())
        rows = [
            torch.rand(64, generator=element_generator(1, step, e, self.device), device=self.device) for e in elements
        ]
        return torch.stack(rows), {"target": torch.tensor(list(elements), device=self.device)}


def requests(steps: int, accumulate: int, batch: int) -> list[tuple[int, range]]:
    """What a training loop asks for."""
    return [(s, range(n * batch, (n + 1) * batch)) for s in range(steps) for n in range(accumulate)]


@pytest.fixture(params=[False, True], ids=["in place", "ahead"])
def overlap(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = threading.active_count()
    yield request.param
    assert threading.active_count() == before  # no thread outlives its prefetch


@pytest.mark.parametrize(("accumulate", "batch"), [(1, 1), (1, 3), (2, 2)])
def test_batches_are_those_made_one_by_one(overlap: bool, accumulate: int, batch: int) -> None:
    plain, task = FakeTask(), FakeTask()
    prefetch = Prefetch(task.batch, CPU, overlap=overlap)
    asked = requests(4, accumulate, batch)
    for number, request in enumerate(asked):
        values, rest = prefetch.take(*request)
        for following in asked[number + 1 : number + 2]:
            prefetch.begin(*following)
        expected, expected_rest = plain.batch(*request)
        assert torch.equal(values, expected)
        assert torch.equal(rest["target"], expected_rest["target"])
    prefetch.close()
    assert task.made == plain.made  # each once, in order


def test_the_next_batch_is_made_while_the_step_goes_on() -> None:
    task, running, may_end = FakeTask(), threading.Event(), threading.Event()

    def slow(step: int, elements: Sequence[int]) -> object:
        running.set()
        assert may_end.wait(30)
        return task.batch(step, elements)

    prefetch = Prefetch(slow, CPU, overlap=True)
    prefetch.begin(0, [0])
    assert running.wait(30)  # begin came back although the batch is not finished
    assert task.made == []
    may_end.set()
    assert torch.equal(prefetch.take(0, [0])[0], FakeTask().batch(0, [0])[0])
    prefetch.close()
    assert threading.get_ident() not in task.threads


def test_on_a_cpu_nothing_is_made_ahead_by_default() -> None:
    task = FakeTask()
    prefetch = Prefetch(task.batch, CPU)
    prefetch.begin(0, [0])
    assert task.made == []
    prefetch.take(0, [0])
    prefetch.close()
    assert task.made == [(0, (0,))]
    assert task.threads == {threading.get_ident()}


@given(asked=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=6), begun=st.lists(st.integers(0, 5)))
def test_whatever_was_begun_the_batch_taken_is_the_one_asked_for(
    asked: list[tuple[int, int]], begun: list[int]
) -> None:
    prefetch = Prefetch(FakeTask().batch, CPU, overlap=True)
    for number, (step, element) in enumerate(asked):
        values, _ = prefetch.take(step, [element])
        assert torch.equal(values, FakeTask().batch(step, [element])[0])
        for guess in begun[number : number + 2]:
            prefetch.begin(guess, [0])
    prefetch.close()


def test_an_error_is_raised_where_the_batch_is_taken() -> None:
    def broken(step: int, elements: Sequence[int]) -> object:
        raise MemoryError(f"step {step}, elements {list(elements)}")

    prefetch = Prefetch(broken, CPU, overlap=True)
    prefetch.begin(3, [1, 2])
    with pytest.raises(MemoryError, match=r"step 3, elements \[1, 2\]"):
        prefetch.take(3, [1, 2])
    prefetch.begin(4, [0])
    prefetch.close()  # a batch nobody took: its error is nobody's


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_survive_the_side_stream_reusing_its_memory() -> None:
    device = torch.device("cuda")
    plain, prefetch = FakeTask(device), Prefetch(FakeTask(device).batch, device)
    work = torch.rand(2048, 2048, device=device)
    asked = requests(50, 1, 64)
    sums, expected = [], []
    for number, request in enumerate(asked):
        values, _ = prefetch.take(*request)
        for _ in range(5):
            work = torch.nn.functional.normalize(work @ work)  # keeps the training stream behind
        sums.append((values + 0 * work[0, 0]).sum())
        del values
        for following in asked[number + 1 : number + 2]:
            prefetch.begin(*following)
    prefetch.close()
    expected = [plain.batch(*request)[0].sum() for request in asked]
    torch.testing.assert_close(torch.stack(sums), torch.stack(expected))
