"""Which labels are stripped, are CSF or are lesions follows from the label table, not from numbers used elsewhere."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from generation_helpers import LESIONS, PROTOCOL, STRIPPED, blobby_map, seeded, small_bank, still, values_of
from synthseg.errors import ConfigError
from synthseg.generation import GenerativeModel, LabelBank, paper
from synthseg.generation.anatomy import AnatomyTables
from synthseg.generation.config import AnatomyPrior
from synthseg.generation.roles import csf_values, lesion_hosts, stripped_values
from synthseg.labels.label import Label
from synthseg.labels.protocol import BUILTIN, LabelProtocol, load_protocol

DEFAULT = AnatomyPrior()
CPU = torch.device("cpu")


def row(value: int, name: str, *, target: int | None = None, contrast: int | None = None, **more: Any) -> Label:
    """A neutral label, its own target and contrast class unless said otherwise."""
    return Label(
        value=value,
        name=name,
        side=more.get("side", "neutral"),
        partner=more.get("partner", value),
        generation_class=0,
        contrast_class=value if contrast is None else contrast,
        target=value if target is None else target,
        topology=0,
        quality=0,
        color=(0, 0, 0),
    )


def protocol_of(*rows: Label) -> LabelProtocol:
    """Background and these, each with its own Gaussian."""
    every = [row(0, "background"), *rows]
    return LabelProtocol("mine", "", tuple(dataclasses.replace(r, generation_class=i) for i, r in enumerate(every)))


# The generation table of SynthSeg


def test_the_generation_table_gives_the_eleven_head_labels_its_csf_and_its_lesions() -> None:
    assert stripped_values(DEFAULT, PROTOCOL) == STRIPPED
    assert csf_values(DEFAULT, PROTOCOL) == (24,)
    assert lesion_hosts(DEFAULT, PROTOCOL) == LESIONS


def test_automatic_and_written_out_values_give_the_same_pairs_bit_by_bit() -> None:
    written = AnatomyPrior(strip_values=STRIPPED, csf_value=24, lesion_values=tuple(LESIONS))
    bank = small_bank()
    grid = still((16, 18, 20)).grid
    config = dataclasses.replace(paper(), grid=grid)
    pairs = [
        GenerativeModel(dataclasses.replace(config, anatomy=prior), bank).sample(8, rng=seeded(3))
        for prior in (DEFAULT, written)
    ]
    assert torch.equal(pairs[0].image, pairs[1].image)
    assert torch.equal(pairs[0].target, pairs[1].target)


@pytest.mark.parametrize("name", BUILTIN)
def test_no_table_of_ours_loses_a_target_to_skull_stripping(name: str) -> None:
    protocol = load_protocol(name)
    tables = AnatomyTables.of(protocol, DEFAULT, CPU)
    targets = torch.as_tensor(protocol.targets)
    assert not targets[tables.extra_cerebral].any()
    assert not tables.extra_cerebral[0]
    assert set(targets[tables.csf].tolist()) <= {24}  # the CSF itself, in a share of the pairs


# Other tables


def test_a_number_that_means_skin_elsewhere_is_not_stripped_where_it_is_a_target() -> None:
    # Every number of the generation table's head is a structure here; 24 and 25 are no CSF and no lesion.
    protocol = protocol_of(*(row(value, f"nucleus {value}") for value in (*STRIPPED, 24, 25, 57)))
    tables = AnatomyTables.of(protocol, DEFAULT, CPU)
    assert not (tables.extra_cerebral | tables.csf | tables.lesion).any()
    assert torch.equal(tables.lesion_host, torch.arange(len(protocol)))
    assert torch.equal(tables.paste_as, torch.arange(len(protocol)))


def test_a_table_of_ones_own_has_its_own_skin_stripped() -> None:
    protocol = protocol_of(
        row(1, "grey matter"),
        row(2, "white matter"),
        row(7, "skin", target=0),
        row(8, "bone", target=0),
        row(9, "cyst", target=0, contrast=1),  # looks like grey matter: inside
        row(10, "left vessel", target=0, side="left", partner=11),
        row(11, "right vessel", target=0, side="right", partner=10),
    )
    assert stripped_values(DEFAULT, protocol) == (7, 8)
    assert stripped_values(AnatomyPrior(strip_values=(8, 10)), protocol) == (8, 10)

    maps = [torch.randint(12, (12, 12, 12), generator=seeded(0)).numpy()]
    maps[0][(maps[0] > 2) & (maps[0] < 7)] = 0
    config = still((12, 12, 12), anatomy=AnatomyPrior(flip_probability=0, strip_probability=1))
    model = GenerativeModel(config, LabelBank.from_maps(maps, [(1.0, 1.0, 1.0)], ["own"], protocol))
    seen = protocol.values[model.labels(model.draw(1, rng=seeded(1)))[0].numpy()]
    expected = maps[0].copy()
    expected[(expected == 7) | (expected == 8)] = 0
    assert (seen == expected).all()


@given(
    rows=st.lists(
        st.tuples(st.integers(1, 600), st.booleans(), st.integers(0, 4)), unique_by=lambda r: r[0], max_size=30
    )
)
def test_whatever_the_table_only_labels_without_target_are_stripped_automatically(
    rows: list[tuple[int, bool, int]],
) -> None:
    protocol = protocol_of(
        *(row(v, f"label {v}", target=v if kept else 0, contrast=contrast) for v, kept, contrast in rows)
    )
    stripped = set(stripped_values(DEFAULT, protocol))
    inside = {contrast for _, kept, contrast in rows if kept}
    assert stripped == {v for v, kept, contrast in rows if not kept and contrast not in inside}


def test_lesions_are_found_by_name_and_need_another_tissue() -> None:
    protocol = protocol_of(
        row(1, "white matter"),
        row(5, "WM Lesion", target=1),
        row(6, "lesion of the skin", target=0),  # pasting it would turn background into skin
        row(7, "lesion kept", target=7),
        row(9, "tumour", target=1),
    )
    assert lesion_hosts(DEFAULT, protocol) == {5: 1}
    assert lesion_hosts(AnatomyPrior(lesion_values=(9,)), protocol) == {9: 1}


def test_csf_is_the_one_given_or_24_where_the_table_calls_it_so() -> None:
    protocol = protocol_of(row(24, "thalamus"), row(3, "External CSF"), row(4, "ventricle"))
    assert csf_values(DEFAULT, protocol) == ()
    assert csf_values(AnatomyPrior(csf_value=3), protocol) == (3,)
    assert csf_values(DEFAULT, load_protocol("synthseg-2.0")) == (24,)
    assert csf_values(DEFAULT, load_protocol("feta")) == ()


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (
            {"strip_values": (511, 41)},
            r"anatomy\.strip_values: found 41 \(right cerebral white matter\), whose target ",
        ),
        ({"strip_values": (0,)}, r"anatomy\.strip_values: found 0, the background\. Fix: give labels with target 0"),
        ({"strip_values": (999,)}, r"strip_values: found 999, which is no label of synthseg-generation.*leave the key"),
        ({"csf_value": 14}, r"anatomy\.csf_value: found 14, which is '3rd ventricle' in synthseg-generation.*'csf'"),
        ({"csf_value": 999}, r"anatomy\.csf_value: found 999, which is no label"),
        ({"lesion_values": (999,)}, r"anatomy\.lesion_values: found 999, which is no label"),
        (
            {"lesion_values": (41,)},
            r"lesion_values: found lesion 41 whose target 41 is no other tissue of synthseg-gen",
        ),
        ({"lesion_values": (511,)}, r"lesion_values: found lesion 511 whose target 0 is no other tissue"),
    ],
)
def test_given_values_that_do_not_fit_the_table_are_refused(prior: dict[str, Any], message: str) -> None:
    anatomy = AnatomyPrior(**prior)
    with pytest.raises(ConfigError, match=message):
        GenerativeModel(still(anatomy=anatomy), small_bank())


def test_a_lesion_without_a_labelled_host_is_refused() -> None:
    labels = [dataclasses.replace(label, target=900) if label.value in LESIONS else label for label in PROTOCOL.labels]
    protocol = dataclasses.replace(PROTOCOL, labels=tuple(labels))
    with pytest.raises(ConfigError, match=r"lesion_values: found lesion 25 whose target 900 is no label"):
        AnatomyTables.of(protocol, DEFAULT, CPU)


def test_stripping_of_the_generation_table_leaves_vessels_chiasm_and_fifth_ventricle() -> None:
    values = blobby_map((14, 14, 14), 0)
    values[5:9, 5:9, 5], values[5:9, 5:9, 6], values[5:9, 5:9, 7], values[5:9, 5:9, 8] = 30, 62, 72, 85
    bank = LabelBank.from_maps([values], [(1.0, 1.0, 1.0)], ["a"], PROTOCOL)
    prior = AnatomyPrior(flip_probability=0, strip_probability=1, strip_csf_probability=1)
    model = GenerativeModel(still((14, 14, 14), anatomy=prior), bank)
    seen = set(values_of(model.labels(model.draw(1, rng=seeded(0)))).ravel().tolist())
    assert {30, 62, 72, 85} <= seen
    assert not seen & {*STRIPPED, 24}
