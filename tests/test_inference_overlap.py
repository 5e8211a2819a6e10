"""Three stages over many items: order, what overlaps, how much is in memory, how it ends."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthseg.inference.pipeline import run_stages


class Log:
    """Stages that note (stage, item) when they begin and end, and take the times they are told."""

    def __init__(self, pauses: dict[tuple[str, int], float] | None = None) -> None:
        self.pauses = pauses or {}
        self.events: list[tuple[str, int]] = []
        self.threads: dict[str, set[str]] = {}

    def run(self, items: list[int], *, overlap: bool) -> None:
        run_stages(
            items, lambda item: self.stage("begin", item), *self.stages("read", "compute", "finish"), overlap=overlap
        )

    def stages(self, *names: str):
        return [lambda item, name=name: self.stage(name, item) for name in names]

    def stage(self, name: str, item: int) -> int:
        self.threads.setdefault(name, set()).add(threading.current_thread().name)
        time.sleep(self.pauses.get((name, item), 0.0))
        self.events.append((name, item))
        return item

    def of(self, name: str) -> list[int]:
        return [item for stage, item in self.events if stage == name]


@given(
    count=st.integers(0, 6),
    overlap=st.booleans(),
    pauses=st.dictionaries(
        st.tuples(st.sampled_from(["read", "compute", "finish"]), st.integers(0, 5)), st.floats(0, 0.004)
    ),
)
def test_every_stage_sees_every_item_once_in_order(count, overlap, pauses):
    log = Log(pauses)
    log.run(list(range(count)), overlap=overlap)
    for name in ("begin", "read", "compute", "finish"):
        assert log.of(name) == list(range(count))


def test_without_overlap_each_item_is_done_before_the_next_is_read():
    log = Log()
    log.run([0, 1], overlap=False)
    assert log.events == [(stage, item) for item in (0, 1) for stage in ("begin", "read", "compute", "finish")]
    assert set().union(*log.threads.values()) == {threading.current_thread().name}


def test_the_next_is_read_and_the_last_finished_while_one_is_computed():
    """Item 1's computation waits until item 2 is read and item 0 is being finished: without overlap it never ends."""
    read_2, finishing_0, computing_1 = threading.Event(), threading.Event(), threading.Event()

    def read(item):
        if item == 2:
            assert computing_1.wait(20)
            read_2.set()
        return item

    def compute(item):
        if item == 1:
            computing_1.set()
            assert read_2.wait(20)
            assert finishing_0.wait(20)
        return item

    def finish(item):
        if item == 0:
            assert computing_1.wait(20)
            finishing_0.set()

    run_stages([0, 1, 2], lambda _: None, read, compute, finish, overlap=True)
    assert read_2.is_set()
    assert finishing_0.is_set()


def test_at_most_one_item_is_read_ahead_and_one_finished_behind():
    lock, alive, most = threading.Lock(), set(), []
    reading, finishing = [], []

    def read(item):
        with lock:
            alive.add(item)
            most.append(len(alive))
        reading.append(item)
        return item

    def compute(item):
        time.sleep(0.005)  # time for the reader to run ahead as far as it may
        assert max(reading) <= item + 1
        return item

    def finish(item):
        finishing.append(item)
        time.sleep(0.02)  # slower than the computation: which then has to wait
        with lock:
            alive.remove(item)

    run_stages(list(range(6)), lambda _: None, read, compute, finish, overlap=True)
    assert max(most) == 3
    assert alive == set()


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("stage", ["begin", "read", "compute", "finish"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_ends_the_work_after_what_was_computed_is_finished(overlap, stage, error):
    finished, threads = [], threading.active_count()

    def failing(name):
        def run(item):
            if (name, item) == (stage, 2):
                raise error
            if name == "finish":
                time.sleep(0.01)
                finished.append(item)
            return item

        return run

    with pytest.raises(error):
        run_stages(list(range(5)), *(failing(name) for name in ("begin", "read", "compute", "finish")), overlap=overlap)
    # The third has been computed by the time that a failure of the second one's finish is known.
    assert finished == ([0, 1, 3] if overlap and stage == "finish" else [0, 1])
    assert threading.active_count() == threads  # both threads have come to rest
