"""Plain values to frozen dataclasses and back: what is given arrives, what is wrong is named with its place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthseg.configs import config_from_dict, config_to_dict
from synthseg.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ConfigError("inner.rate", found=repr(self.rate), fix="give at least 0")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    count: int = 1
    on: bool = False
    triple: tuple[int, int, int] = (1, 2, 3)
    many: tuple[float, ...] = ()
    pairs: tuple[tuple[float, float], ...] = ()
    limit: float | None = None
    inner: Inner = field(default_factory=Inner)


floats = st.floats(0, 1e6, allow_nan=False)
outers = st.builds(
    Outer,
    name=st.text(),
    count=st.integers(),
    on=st.booleans(),
    triple=st.tuples(st.integers(), st.integers(), st.integers()),
    many=st.lists(floats).map(tuple),
    pairs=st.lists(st.tuples(floats, floats)).map(tuple),
    limit=st.none() | floats,
    inner=st.builds(Inner, rate=floats, kind=st.sampled_from(["a", "b"])),
)


@given(config=outers)
def test_plain_values_and_back_is_the_identity(config: Outer):
    assert config_from_dict(Outer, config_to_dict(config), where="x") == config


def test_lists_become_tuples_and_whole_numbers_floats():
    config = config_from_dict(Outer, {"name": "n", "triple": [4, 5, 6], "limit": 1, "many": [1, 2.5]}, where="x")
    assert config.triple == (4, 5, 6)
    assert (config.limit, config.many) == (1.0, (1.0, 2.5))
    assert isinstance(config.limit, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "n", "cuont": 2}, r"^file: found unknown key 'cuont'. Fix: did you mean 'count'\? known keys: name,"),
        ({"name": "n", "inner": {"rats": 2}}, r"^file.inner: found unknown key 'rats'. Fix: did you mean 'rate'"),
        ({"name": "n", "zzzzzz": 2}, r"unknown key 'zzzzzz'. Fix: known keys"),
        ({"name": "n", "count": "2"}, r"^file.count: found '2'. Fix: give a value of type int"),
        ({"name": "n", "count": 2.0}, r"^file.count: found 2.0"),
        ({"name": "n", "count": True}, r"^file.count: found True"),
        ({"name": "n", "on": 1}, r"^file.on: found 1. Fix: give a value of type bool"),
        ({"name": "n", "limit": "1"}, r"^file.limit: found '1'. Fix: give a value of type float"),
        ({"name": 3}, r"^file.name: found 3. Fix: give a value of type str"),
        ({"name": "n", "triple": [1, 2]}, r"^file.triple: found 2 values. Fix: give 3"),
        ({"name": "n", "triple": 8}, r"^file.triple: found 8. Fix: give a list"),
        ({"name": "n", "pairs": [[1, 2], [3, "x"]]}, r"^file.pairs\[1\]\[1\]: found 'x'"),
        ({"name": "n", "inner": 3}, r"^file.inner: found 3. Fix: write a table of keys"),
        ({"name": "n", "inner": {"kind": "c"}}, r"^file.inner.kind: found 'c'. Fix: choose one of 'a', 'b'"),
        ({"name": "n", "inner": {"rate": -1}}, r"^inner.rate: found -1.0"),
        ({}, r"^file: found no value for name. Fix: add the missing keys"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(values: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        config_from_dict(Outer, values, where="file")
