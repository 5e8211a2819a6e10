"""The generative model's config: what it refuses, that it survives the way through plain values, presets and priors."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generation_helpers import PROTOCOL, seeded, small_bank
from synthseg.configs import config_from_dict, config_to_dict
from synthseg.errors import ConfigError
from synthseg.generation import PRESETS, GenerationConfig, GenerativeModel, load_priors, original, paper, t1

NAN, INFINITE = float("nan"), float("inf")


def build(values: dict[str, Any]) -> GenerationConfig:
    return config_from_dict(GenerationConfig, values, where="recipe.toml: generation")


# (stage, key) of every hyperparameter.
KEYS = [
    (stage.name, key.name)
    for stage in dataclasses.fields(GenerationConfig)
    for key in dataclasses.fields(getattr(GenerationConfig(), stage.name))
]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bais": {}}, r"recipe\.toml: generation: found unknown key 'bais'.*did you mean 'bias'"),
        ({"bias": {"maxstd": 1.0}}, r"generation\.bias: found unknown key 'maxstd'.*did you mean 'max_std'"),
        ({"bias": 0.7}, r"generation\.bias: found 0\.7"),
        ({"grid": {"shape": 64}}, r"grid\.shape: found 64\. Fix: give a list"),
        ({"grid": {"shape": [64, 64]}}, r"grid\.shape: found 2 values\. Fix: give 3"),
        ({"grid": {"shape": [64, 64, 64.5]}}, r"grid\.shape\[2\]: found 64\.5"),
        ({"grid": {"focus": "nose"}}, r"grid\.focus: found 'nose'\. Fix: choose one of 'map', 'brain'"),
        ({"mixture": {"class_means": [[1.0]]}}, r"mixture\.class_means\[0\]: found 1 values"),
    ],
)
def test_unknown_keys_and_wrong_forms_name_their_place(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(values)


@pytest.mark.parametrize(("stage", "key"), KEYS)
@pytest.mark.parametrize("value", [{"a": 1}, True, b"bytes"], ids=["table", "bool", "bytes"])
def test_a_wrong_type_names_its_key(stage: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"recipe\.toml: generation\.{stage}\.{key}: found"):
        build({stage: {key: value}})


@pytest.mark.parametrize(("stage", "key"), KEYS)
def test_an_unknown_word_names_its_key(stage: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"generation\.{stage}\.{key}: found 'banana'"):
        build({stage: {key: "banana"}})


OUT_OF_RANGE: list[tuple[str, Any]] = [
    ("grid.shape", [64, 64, 7]),
    ("grid.spacing_mm", 0.0),
    ("grid.spacing_mm", 11.0),
    ("grid.jitter_mm", -1.0),
    ("deformation.scaling", 1.0),
    ("deformation.rotation_deg", 181.0),
    ("deformation.shearing", 0.5),
    ("deformation.translation_mm", -1.0),
    ("deformation.translation_mm", INFINITE),
    ("deformation.svf_max_std_mm", -0.1),
    ("deformation.svf_node_mm", 0.0),
    ("deformation.svf_step_mm", INFINITE),
    ("deformation.svf_gain", 0.0),
    ("deformation.squarings", 0),
    ("deformation.squarings", 13),
    ("anatomy.flip_probability", 1.1),
    ("anatomy.strip_probability", -0.1),
    ("anatomy.strip_csf_probability", 2.0),
    ("anatomy.lesion_probability", 2.0),
    ("anatomy.lesion_paste_probability", 2.0),
    ("mixture.mean_range", [10.0, 5.0]),
    ("mixture.mean_range", [0.0, INFINITE]),
    ("mixture.std_range", [-1.0, 5.0]),
    ("mixture.symmetric_probability", 1.5),
    ("mixture.stripped_dark_probability", 1.5),
    ("mixture.background_zero_probability", 1.5),
    ("mixture.background_dark_probability", 0.96),  # together with 0.05 of exactly zero
    ("mixture.class_means[1]", [[1.0, 2.0], [1.0, -2.0]]),
    ("mixture.class_stds[0]", [[NAN, 2.0]]),
    ("bias.max_std", -0.7),
    ("bias.max_std", 6.0),
    ("bias.node_mm", 0.0),
    ("bias.probability", 1.2),
    ("intensity.gamma_std", -0.1),
    ("intensity.clip_max", 0.0),
    ("intensity.final_percentiles", [99.0, 1.0]),
    ("intensity.final_percentiles", [0.0, 101.0]),
    ("acquisition.max_spacing_mm", 0.0),
    ("acquisition.max_isotropic_mm", INFINITE),
    ("acquisition.isotropic_probability", -0.1),
    ("acquisition.native_probability", 1.1),
    ("acquisition.sigma_factor", -1.0),
    ("acquisition.native_sigma_vox", INFINITE),
    ("acquisition.jitter", -0.1),
]


@pytest.mark.parametrize(("place", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_names_its_key(place: str, value: object) -> None:
    stage, key = place.split(".")
    with pytest.raises(ConfigError, match=rf"^generation\.{re.escape(place)}: found"):
        build({stage: {key.split("[")[0]: value}})


@pytest.mark.parametrize(("stage", "key"), KEYS)
def test_no_number_may_be_nan(stage: str, key: str) -> None:
    default = getattr(getattr(GenerationConfig(), stage), key)
    if key in ("clip_max",) or isinstance(default, float):
        with pytest.raises(ConfigError, match=rf"generation\.{stage}\.{key}"):
            build({stage: {key: NAN}})


def test_shares_that_exceed_1_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"acquisition\.isotropic_probability: found 1\.1"):
        build({"acquisition": {"isotropic_probability": 0.6, "native_probability": 0.5}})


def test_a_normal_mixture_needs_its_classes() -> None:
    with pytest.raises(ConfigError, match=r"mixture\.class_means: found \(\)"):
        build({"mixture": {"kind": "normal"}})
    with pytest.raises(ConfigError, match=r"mixture\.class_means"):
        build({"mixture": {"kind": "normal", "class_means": [[1.0, 1.0]], "class_stds": []}})


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_survives_json(name: str) -> None:
    config = PRESETS[name]()
    assert build(json.loads(json.dumps(config_to_dict(config)))) == config


def test_whole_numbers_are_taken_where_numbers_are_meant() -> None:
    assert build({"bias": {"max_std": 1}}).bias.max_std == 1.0


def test_an_empty_table_is_the_papers_model() -> None:
    assert build({}) == paper() == GenerationConfig()


def test_the_presets_have_the_values_of_their_sources() -> None:
    # Paper: Eq. 23 and section 5.2. Original: reference 2.2 and 2.3. The full list of differences is decision 0001's.
    assert paper().acquisition.sigma_factor == pytest.approx(2 * math.log(10) / (2 * math.pi))
    assert paper().mixture.mean_range == (0.0, 255.0)
    assert paper().mixture.std_range == (0.0, 35.0)
    assert paper().grid.shape == (160, 160, 160)
    assert original().acquisition.isotropic_probability == pytest.approx(0.1 * 0.95)
    assert original().acquisition.native_probability == 0.05
    assert original().intensity.clip_max == 300.0
    for config in (paper(), original()):
        deformation = config.deformation
        assert (deformation.scaling, deformation.rotation_deg, deformation.shearing) == (0.2, 15.0, 0.012)
        assert (deformation.svf_max_std_mm, deformation.squarings, deformation.translation_mm) == (4.0, 7, 0.0)
        assert 1 / deformation.svf_node_mm == pytest.approx(0.04)
        assert 1 / config.bias.node_mm == pytest.approx(0.025)
        assert (config.bias.max_std, config.intensity.gamma_std, config.anatomy.flip_probability) == (0.7, 0.5, 0.5)
        assert (config.acquisition.max_spacing_mm, config.acquisition.max_isotropic_mm) == (8.0, 4.0)


# Priors of one contrast


def test_the_t1_table_has_one_row_for_each_contrast_class_of_the_protocol() -> None:
    means, stds = load_priors("t1")
    assert len(means) == len(stds) == 25
    assert sorted(set(PROTOCOL.contrast_classes.tolist())) == list(range(25))


def test_the_t1_table_gives_structures_the_references_values() -> None:
    # Reference 1.8, by structure, so that a class number moved in either table would show.
    means, stds = load_priors("t1")
    expected = {
        0: (7, 1.75, 5, 2.5),
        4: (44.4385, 11.21, 25.5656, 9.84077),
        41: (160.294, 21.6558, 15.6322, 5.47666),
        53: (96.2953, 12.1783, 18.9183, 6.30534),
        8: (88.1551, 10.5597, 17.0927, 5.49187),
        13: (151.799, 19.5107, 8.55665, 4.07137),
        57: (116.105, 14.8218, 19.4568, 7.16935),
        16: (129.785, 12.2352, 17.5332, 6.78426),
        502: (126.377, 24.7973, 83.9518, 49.3672),
        530: (144.456, 16.3185, 44.6736, 26.2114),
    }
    for value, numbers in expected.items():
        index = PROTOCOL.by_value(value).contrast_class
        assert (*means[index], *stds[index]) == pytest.approx(numbers, rel=1e-5)


def test_the_t1_table_equals_the_originals_arrays(shared: Path) -> None:
    arrays = json.loads((shared / "data" / "training" / "tables" / "all_arrays.json").read_text())
    for ours, theirs in zip(load_priors("t1"), (arrays["prior_means_t1"], arrays["prior_stds_t1"]), strict=True):
        np.testing.assert_array_equal(np.array(ours).T, np.array(theirs))


def test_t1_images_show_white_matter_above_grey_above_csf() -> None:
    config = dataclasses.replace(t1(), grid=dataclasses.replace(t1().grid, shape=(8, 8, 8)))
    draw = GenerativeModel(config, small_bank()).draw(500, rng=seeded(0))
    white, grey, csf = (draw.mixture.means[:, PROTOCOL.by_value(v).contrast_class].mean() for v in (2, 3, 24))
    assert white > grey + 40 > csf + 80


def test_t1_differs_from_paper_in_the_mixture_only() -> None:
    assert dataclasses.replace(t1(), mixture=paper().mixture) == paper()
    assert (t1().mixture.kind, t1().mixture.classes) == ("normal", "contrast")


HEADER = "class\tmean_of_means\tstd_of_means\tmean_of_stds\tstd_of_stds\n"


def test_a_table_of_ones_own_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t2.tsv"
    path.write_text("# T2\n" + HEADER + "0\t1\t2\t3\t4\n\n# a remark\n1\t5.5\t6\t7\t8\n")
    assert load_priors(path) == (((1, 2), (5.5, 6)), ((3, 4), (7, 8)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"t2\.tsv: found no header row"),
        (HEADER, r"t2\.tsv: found no header row, or no rows"),
        ("class,mean\n0,1\n", r"t2\.tsv: found no header row.*separated by tabs"),
        (HEADER + "0\t1\t2\t3\tmany\n", r"t2\.tsv: line 2: found could not convert.*'many'"),
        (HEADER + "0\t1\t2\t3\n", r"t2\.tsv: line 2: found .*give 5 finite numbers"),
        (HEADER + "0\t1\t-2\t3\t4\n", r"t2\.tsv: line 2: found"),
        (HEADER + "0\t1\t2\tnan\t4\n", r"t2\.tsv: line 2: found"),
        (HEADER + "# x\n1\t1\t2\t3\t4\n", r"t2\.tsv: line 3: found class 1\. Fix: list the classes in order; 0 comes"),
    ],
)
def test_a_table_that_is_wrong_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t2.tsv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_priors(path)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"t3: found no such file. Fix: give one of t1"):
        load_priors("t3")
