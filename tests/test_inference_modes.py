"""Modes as data, the roles of weights, and which networks fit each other."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import torch

from plus_helpers import (
    GROUPS,
    PARCELS,
    QUALITY,
    SHIPPED,
    STRUCTURES,
    Means,
    Reader,
    hierarchy_models,
    parcels_model,
    quality_model,
    random_unet,
    structures_model,
)
from synthseg.errors import ConfigError, UsageError, WeightsError
from synthseg.inference import MODES, InferenceConfig, Model, Segmenter, load_model
from synthseg.inference.bundle import check_fit, gather, locator_of, main_of, multiple_of, structures_of
from synthseg.inference.modes import find_mode, mode_config, modes_from_tables
from synthseg.labels import LabelProtocol, load_protocol
from synthseg.networks import Encoder, EncoderConfig
from synthseg.weights import make_card, save_weights

DEFAULT = InferenceConfig()


def tables(text: str = "") -> dict:
    shipped = (resources.files("synthseg.inference") / "modes.toml").read_text(encoding="utf-8")
    return tomllib.loads(shipped + "\n" + text)


def save_role(path: Path, role: str | None, in_channels: int, protocol: LabelProtocol, **facts: object) -> Path:
    outputs = len(protocol.target_values)
    if role == "quality":
        network: torch.nn.Module = Encoder(EncoderConfig(features=2, levels=2, kernel=3))
    else:
        network = random_unet(in_channels, outputs, seed=1)
    card = make_card(path.stem, network.config.to_dict(), protocol, spacing_mm=2.0, facts=facts)
    return save_weights(path, network.state_dict(), card if role is None else {**card, "role": role})


# -- modes.toml


def test_modes_are_configs_and_unknown_ones_are_refused():
    assert mode_config("default") == MODES["default"] == DEFAULT
    assert MODES["fast"] == replace(DEFAULT, flip=False, topology=False)
    assert MODES["robust"] == DEFAULT
    published = replace(DEFAULT, flip=False, topology=False, smoothing_sigma_vox=0)  # reference 6.4
    assert MODES["robust-fast"] == published
    assert list(MODES) == ["default", "fast", "robust", "robust-fast", "fetal", "fetal-published"]
    with pytest.raises(ConfigError, match=r"mode: found 'robus'\. Fix: use one of default, fast, robust, robust-fast"):
        mode_config("robus")


def test_the_modes_name_weights_by_the_role_they_play():
    named = find_mode("robust").weights.by_role()
    assert named == {role: f"synthseg-2mm-{role}" for role in ("tissues", "denoiser", "guided")}
    assert find_mode("robust-fast").weights.by_role() == named
    _, extras = modes_from_tables(tables())
    assert {name: mode.weights.by_role() for name, mode in extras.items()} == {
        "locator": {"tissues": "synthseg-2mm-tissues"},
        "parcels": {"parcels": "synthseg-2mm-parcels"},
        "quality": {"quality": "synthseg-2mm-quality"},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[new]\ndescription = 'x'\nweights = { structure = 'a' }", r"new\.weights: found unknown key 'structure'"),
        ("[new]\ndescription = 'x'\nweights.structures = 'a'\ninference = { flop = true }", "unknown key 'flop'"),
        ("[new]\ndescription = 'x'\nweights.tissues = 'a'", r"weights for tissues\. Fix: name weights for structures"),
        ("[new]\ndescription = 'x'\nweights.structures = 3", r"new\.weights\.structures: found 3"),
        ("[new]\nweights.structures = 'a'", "no value for description"),
    ],
)
def test_mistakes_in_modes_are_named_with_their_table(text, message):
    with pytest.raises(ConfigError, match=r"modes\.toml: " + r".*" + message):
        modes_from_tables(tables(text))


def test_an_add_on_must_name_its_own_role_and_be_there():
    wrong = tables()
    wrong["quality"] = {"description": "x", "weights": {"parcels": "a"}}
    with pytest.raises(
        ConfigError, match=r"quality\.weights: found weights for parcels\. Fix: name weights for quality"
    ):
        modes_from_tables(wrong)
    for missing in ("quality", "locator"):
        few = tables()
        del few[missing]
        with pytest.raises(ConfigError, match=f"no table for {missing}"):
            modes_from_tables(few)
    wrong = tables()
    wrong["locator"] = {"description": "x", "weights": {"structures": "a"}}
    with pytest.raises(
        ConfigError, match=r"locator\.weights: found weights for structures\. Fix: name weights for tissues"
    ):
        modes_from_tables(wrong)


# -- roles


def test_a_file_states_its_role_and_one_without_finds_structures(tmp_path):
    plain = load_model(save_role(tmp_path / "a.safetensors", None, 1, GROUPS))
    assert (plain.role, plain.in_channels, plain.soft_inputs) == ("structures", 1, False)
    path = save_role(tmp_path / "b.safetensors", "quality", 9, QUALITY, soft_inputs=True, field_of_view_mm=[40, 48, 40])
    quality = load_model(path, role="quality")
    assert (quality.role, quality.in_channels, quality.soft_inputs) == ("quality", 9, True)
    assert quality.field_of_view_mm == (40.0, 48.0, 40.0)
    assert load_model(path, role=None).role == "quality"
    with pytest.raises(
        WeightsError, match=r"b\.safetensors: found weights of role 'quality'.*use weights of role struc"
    ):
        load_model(path)


@pytest.mark.parametrize(
    ("role", "in_channels", "protocol", "message"),
    [
        ("structures", 2, STRUCTURES, "2 input channels, where role 'structures' has 1.*whose input is one image"),
        ("tissues", 6, GROUPS, "6 input channels, where role 'tissues' has 1"),
        ("denoiser", 4, GROUPS, "4 input channels, where role 'denoiser' has 5"),
        ("parcels", 1, PARCELS, "1 input channels, where role 'parcels' has 3"),
    ],
)
def test_inputs_that_are_not_those_of_the_role_are_refused(tmp_path, role, in_channels, protocol, message):
    path = save_role(tmp_path / "odd.safetensors", role, in_channels, protocol)
    with pytest.raises(WeightsError, match=r"odd\.safetensors: found a network with " + message):
        load_model(path, role=role)


def test_a_unet_cannot_score_quality_and_only_quality_reads_posteriors(tmp_path):
    unet = random_unet(9, 9, seed=1)
    card = {**make_card("tiny", unet.config.to_dict(), QUALITY, spacing_mm=2.0), "role": "quality"}
    path = save_weights(tmp_path / "q.safetensors", unet.state_dict(), card)
    with pytest.raises(WeightsError, match=r"q\.safetensors: found 'unet', a network of another kind"):
        load_model(path, role="quality")
    with pytest.raises(WeightsError, match="soft inputs for a network of role 'denoiser'"):
        Model.from_network(Reader([], 5), GROUPS, spacing_mm=1.0, role="denoiser", soft_inputs=True)
    with pytest.raises(WeightsError, match="the role 'denoise'"):
        Model.from_network(Reader([], 5), GROUPS, spacing_mm=1.0, role="denoise")


# -- which networks a run has


def test_weights_take_the_place_of_the_network_whose_role_they_have():
    own = structures_model()
    assert list(gather("default", own, parcels=parcels_model())) == ["structures", "parcels"]
    assert main_of(gather("fast", own)) is own
    models = hierarchy_models()
    assert list(gather("robust", models)) == ["tissues", "denoiser", "guided"]
    assert main_of(gather("robust", models)) is models["guided"]


@pytest.mark.parametrize(("mode", "fits"), [("robust", "tissues or denoiser or guided"), ("default", "structures")])
def test_weights_of_a_role_the_mode_has_no_use_for_are_refused_naming_those_that_fit(mode, fits):
    given = structures_model() if mode == "robust" else hierarchy_models()["guided"]
    with pytest.raises(WeightsError, match=rf"of no use in mode {mode}\. Fix: use weights of role {fits}"):
        Segmenter(given, mode)
    with pytest.raises(WeightsError, match=r"found weights of role 'quality', which are of no use as parcels"):
        gather("default", structures_model(), parcels=quality_model())
    with pytest.raises(UsageError, match=r"weights of mode default: found weights for denoiser, guided, tiss"):
        gather("default", hierarchy_models())


def test_one_file_replaces_one_network_of_the_hierarchy(tmp_path, monkeypatch):
    shipped = {"tissues": (1, GROUPS), "denoiser": (5, GROUPS), "guided": (6, STRUCTURES)}
    for role, (inputs, protocol) in shipped.items():
        save_role(tmp_path / f"{SHIPPED[role]}.safetensors", role, inputs, protocol)
    monkeypatch.setenv("SYNTHSEG_WEIGHTS_DIR", str(tmp_path))
    own = save_role(tmp_path / "own.safetensors", "guided", 6, STRUCTURES)
    models = Segmenter(own, "robust").models
    named = {role: model.name for role, model in models.items() if role != "locator"}
    assert named == {"tissues": SHIPPED["tissues"], "denoiser": SHIPPED["denoiser"], "guided": "own"}
    for default in (None, "default"):
        given = gather("robust", default, locator=False)
        assert [m.name for m in given.values()] == [SHIPPED[role] for role in shipped]


def test_weights_of_another_protocol_than_counted_on_are_refused(tmp_path):
    assert gather("default", structures_model(), protocol="synthseg-2.0")
    with pytest.raises(WeightsError, match=r"another protocol: 'synthseg-2\.0', not 'synthseg-1\.0' as asked for"):
        Segmenter(structures_model(), protocol="synthseg-1.0")
    feta = load_protocol("feta")
    (tmp_path / "synthseg-2.0.tsv").write_text(LabelProtocol("synthseg-2.0", "", feta.labels).to_table())
    with pytest.raises(WeightsError, match=r"another protocol: 'synthseg-2\.0' with other label values than asked for"):
        gather("default", structures_model(), protocol=tmp_path / "synthseg-2.0.tsv")


def test_the_working_grid_suits_every_unet_and_voxel_sizes_must_agree():
    models = {**hierarchy_models(multiple=16), "parcels": parcels_model(multiple=6)}
    assert multiple_of(models) == 48
    assert multiple_of({**models, "quality": replace(quality_model(), multiple=7)}) == 48  # it has a window of its own
    with pytest.raises(
        WeightsError, match=r"weights parcels: found a network for voxels of 2 mm beside structures for 1"
    ):
        gather("default", structures_model(), parcels=parcels_model(spacing_mm=2.0))


def test_networks_that_do_not_understand_each_other_are_refused():
    models = hierarchy_models()
    with pytest.raises(
        WeightsError, match=r"weights guided: found 7 input channels, where an image and the groups of den"
    ):
        gather("robust", {**models, "guided": replace(models["guided"], in_channels=7)})
    other = Model.from_network(Reader([], 9), QUALITY, spacing_mm=1.0, role="denoiser")
    with pytest.raises(WeightsError, match=r"groups of quality-groups for a network that sees those of tissue-groups"):
        gather("robust", {**models, "denoiser": other})
    groups = Model.from_network(Reader([], 5), GROUPS, spacing_mm=1.0, name="groups")
    with pytest.raises(
        WeightsError, match=r"parcels of the cortex for groups, whose labels \(tissue-groups\) have no cer"
    ):
        gather("default", groups, parcels=parcels_model())
    with pytest.raises(WeightsError, match=r"have no quality groups"):
        gather("default", groups, quality=quality_model())
    few = Model.from_network(Means(), GROUPS, role="quality", spacing_mm=1.0, name="few")
    with pytest.raises(WeightsError, match=r"weights few: found no quality group 5, 6, 7, 8, which structures"):
        gather("default", structures_model(), quality=few)
    sideless = Model.from_network(Reader([], 5), GROUPS, role="parcels", spacing_mm=1.0)
    with pytest.raises(WeightsError, match=r"found parcels without a side: white matter"):
        gather("default", structures_model(), parcels=sideless)


def test_a_network_that_is_shown_windows_comes_with_a_locator_of_its_own(tmp_path):
    plain = load_model(save_role(tmp_path / "plain.safetensors", None, 1, STRUCTURES))  # batch norm: any field of view
    stated = load_model(save_role(tmp_path / "stated.safetensors", None, 1, STRUCTURES, field_of_view_mm=[80, 80, 80]))
    for own in (plain, stated):
        models = gather("fast", own)
        assert {role: model.name for role, model in models.items()} == {
            "locator": SHIPPED["tissues"],
            "structures": own.name,
        }
        assert locator_of(models) is models["locator"]
        assert main_of(models) is own
        assert multiple_of(replace_locator(models, multiple=7)) == own.multiple  # it has a grid of its own
        check_fit(replace_locator(models, spacing_mm=3.0))
        assert list(gather("fast", own, locator=False)) == ["structures"]
    other = Model.from_network(Reader([], 5), GROUPS, spacing_mm=3.0, role="tissues", name="other")
    assert gather("fast", plain, locator=other)["locator"] is other
    assert gather("fast", {"structures": plain, "locator": other})["locator"] is other
    with pytest.raises(
        WeightsError, match=r"weights structures: found weights of role 'structures', which are of no use"
    ):
        gather("fast", plain, locator=structures_model())


def test_a_network_of_ones_own_finds_the_brain_itself_and_others_need_not():
    own = replace(structures_model(), field_of_view_mm=(40.0, 40.0, 40.0))
    assert list(gather("default", own)) == ["structures"]
    assert locator_of({"structures": own}) is None
    assert list(gather("default", structures_model())) == ["structures"]  # may depend on positions: never cut
    models = hierarchy_models()
    models["guided"] = replace(models["guided"], field_of_view_mm=(40.0, 40.0, 40.0))
    gathered = gather("robust", models)
    assert list(gathered) == ["tissues", "denoiser", "guided"]  # S1 finds it, loaded once
    assert locator_of(gathered) is models["tissues"]


def replace_locator(models: dict[str, Model], **changes: object) -> dict[str, Model]:
    return {**models, "locator": replace(models["locator"], **changes)}


def test_a_run_knows_all_structures_and_groups_of_its_results():
    segmenter = Segmenter(structures_model(), parcels=parcels_model(), quality=quality_model())
    assert list(segmenter.models) == ["structures", "parcels", "quality"]
    assert [s.value for s in segmenter.structures][-68:] == PARCELS.target_values[1:].tolist()
    assert {s.whole for s in segmenter.structures[-68:-34]} == {3}
    assert {s.whole for s in segmenter.structures[-34:]} == {42}
    assert structures_of({"structures": structures_model()}) == segmenter.structures[:33]
    assert segmenter.quality_groups == QUALITY.names[1:]
    assert Segmenter(structures_model()).quality_groups == ()
    other = segmenter.with_config(MODES["fast"])
    assert other.models is segmenter.models
    assert (other.config, segmenter.config) == (MODES["fast"], DEFAULT)
