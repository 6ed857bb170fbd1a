"""Training options, recipes and configuration files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi2ihc.errors import ModelError, OptionError
from wsi2ihc.training.options import RECIPES, TrainOptions, config_text, differences, read_config, resolve_options


def test_recipes_of_the_study() -> None:
    pix2pix, pyramid, variance = (resolve_options({"recipe": recipe}) for recipe in RECIPES)
    assert (pix2pix.network_name, pix2pix.octaves, pix2pix.l1_weight, pix2pix.variance_weight) == (
        "U-Net-256",
        1,
        100,
        0,
    )
    assert (pyramid.network_name, pyramid.octaves, pyramid.l1_weight, pyramid.variance_weight) == ("ResNet-9", 4, 25, 0)
    assert variance.variance_weight > 0
    assert dataclasses.replace(variance, variance_weight=0.0, recipe="pyramid") == pyramid


def test_defaults_are_the_study_s_hyperparameters() -> None:
    options = resolve_options()
    assert (options.recipe, options.batch_size, options.epochs) == ("variance", 8, 100)
    assert (options.learning_rate, options.beta1, options.beta2) == (2e-4, 0.5, 0.999)
    assert (options.ngf, options.ndf, options.crop_size) == (64, 64, 256)


def test_precedence_of_sources(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('recipe = "pyramid"\nepochs = 7\nngf = 8\nmpp = 0.3\n')
    options = resolve_options({"ngf": 16}, config=config)
    assert (options.recipe, options.epochs, options.ngf, options.mpp) == ("pyramid", 7, 16, 0.3)
    assert (options.octaves, options.variance_weight) == (4, 0.0)
    assert resolve_options({"recipe": "pix2pix"}, config=config).octaves == 1


def test_recipe_replaces_that_of_a_configuration(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(config_text(resolve_options({"recipe": "variance", "ngf": 8})))
    assert resolve_options({"recipe": "pyramid"}, config=config) == resolve_options({"recipe": "pyramid", "ngf": 8})


def test_groups_override_split_by_patch_of_a_file(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("split_by_patch = true\n")
    assert resolve_options(config=config).split_by_patch
    assert not resolve_options({"group_by": "patients.csv"}, config=config).split_by_patch
    with pytest.raises(OptionError, match="contradict"):
        resolve_options({"group_by": "patients.csv", "split_by_patch": True})


def test_preset_sets_no_option() -> None:
    options = resolve_options({"preset": "bci"})
    assert options == dataclasses.replace(resolve_options(), preset="bci")
    with pytest.raises(OptionError, match="--preset is one of none, bci, not 'mine'"):
        resolve_options({"preset": "mine"})


@given(
    st.builds(
        TrainOptions,
        stain=st.none() | st.text(max_size=20),
        group_by=st.none() | st.text(max_size=20),
        learning_rate=st.floats(1e-9, 0.9),
        seed=st.integers(0, 2**31),
        dropout=st.booleans(),
    )
)
def test_configuration_round_trip(tmp_path_factory: pytest.TempPathFactory, options: TrainOptions) -> None:
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(config_text(options), encoding="utf-8")
    assert TrainOptions(**read_config(path)) == options


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch = 3", "unknown option 'epoch'; did you mean epochs"),
        ("[train]\nepochs = 3", r"has a table \[train\]"),
        ("zzz = 1", "unknown option 'zzz'; wsi2ihc train --help lists them"),
        ("epochs = ", "is not TOML"),
        ("seed = " + "9" * 5000, "is not TOML"),
        ("seed = " + "[" * 100_000, "is not TOML"),
        ("epochs = 3.5", "--epochs is a whole number"),
        ("epochs = true", "--epochs is a whole number"),
        ('learning_rate = "fast"', "--learning-rate is a number"),
        ("learning_rate = inf", "finite"),
        ('recipe = "cyclegan"', r"bad\.toml: --recipe is one of pix2pix, pyramid, variance, not 'cyclegan'"),
        ('order = "AC"', "--order is one of AB, BA"),
        ("stain = 3", "--stain is text"),
    ],
)
def test_invalid_configuration_is_an_error(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(OptionError, match=said):
        resolve_options(config=path)


def test_missing_configuration_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"none\.toml cannot be read"):
        read_config(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 1}, "needs at least 2 images"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"crop_size": 130}, "not a multiple of 4, which ResNet-9 needs"),
        ({"recipe": "pix2pix", "crop_size": 128}, "not a multiple of 256, which U-Net-256 needs; or lower --depth"),
        ({"crop_size": 16}, "discriminator needs 32 px"),
        ({"crop_size": 32, "octaves": 6}, "--octaves 6 is too large: the maximum is 8, and for crops of 32 px 5"),
        ({"mpp": 0.0}, "--mpp must lie between"),
        ({"validation_share": 1.0}, "--validation-share must lie between 0 and 1"),
        ({"beta1": 1.0}, "--beta1"),
        ({"learning_rate": 0.0}, "--learning-rate must lie between"),
        ({"workers": -2}, "--workers must be at least -1"),
    ],
)  # fmt: skip
def test_invalid_values_are_an_error(changes: dict[str, object], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        resolve_options(changes)


def test_invalid_network_is_an_error() -> None:
    with pytest.raises(ModelError, match="upsampling"):
        resolve_options({"recipe": "pix2pix", "upsampling": "bilinear"})


def test_differences_only_list_options_that_affect_the_result() -> None:
    options = resolve_options({"epochs": 10})
    assert differences(options, dataclasses.replace(options, workers=3, log_every=7)) == []
    assert differences(options, dataclasses.replace(options, epochs=20, seed=3)) == [
        "--epochs 10 -> 20",
        "--seed 0 -> 3",
    ]


def test_every_option_has_a_help_text() -> None:
    for one in dataclasses.fields(TrainOptions):
        assert one.metadata["help"].endswith((".", ")")), one.name
