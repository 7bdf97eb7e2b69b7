"""Presets, their training recipes, and random backbones on disk."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from safetensors.torch import load_file

from detris_peft import presets
from detris_peft.modeling.backbone_adapters import adapt_backbone
from detris_peft.training import TrainingArguments
from tests.helpers.tiny_models import IMAGE, TEXT, image_encoder, text_encoder

PAPER_ROWS = (
    "table2-full",
    "table2-fixed",
    "table2-adapter",
    "table2-houlsby",
    "table2-compacter",
    "table2-compacter-112",
    "table2-lora",
    "table2-etris",
    "table3-none",
    "table3-da",
    "table3-ta",
)


def test_preset_names():
    detris = ("detris-b", "detris-b-half", "detris-b-plus", "detris-l", "detris-l-mixed")
    assert presets.list_presets() == (*detris, *PAPER_ROWS, "tiny")


def test_each_call_returns_a_new_config():
    first = presets.get("detris-b")
    first.vision_adapter.dim = 16
    assert presets.get("detris-b").vision_adapter.dim == 128


def test_an_unknown_preset_is_refused_with_the_list_of_presets():
    for function in (presets.get, presets.recipe):
        with pytest.raises(ValueError, match=r"expected one of detris-b, detris-b-half, .*got 'detris-xl'"):
            function("detris-xl")


@pytest.mark.parametrize("name", presets.list_presets())
def test_a_recipe_holds_only_training_arguments_that_differ_from_the_defaults(name):
    recipe, defaults = presets.recipe(name), asdict(TrainingArguments())
    assert recipe.keys() <= defaults.keys()
    assert not [option for option, value in recipe.items() if defaults[option] == value]
    TrainingArguments(**recipe)


@pytest.mark.parametrize("name", presets.list_recipes())
def test_a_named_recipe_holds_training_arguments_that_do_not_depend_on_the_data(name):
    recipe = presets.get_recipe(name)
    assert not recipe.options.keys() & {"epochs", "milestones"}
    assert recipe.options.keys() <= asdict(TrainingArguments()).keys()
    TrainingArguments(**recipe.options, epochs=recipe.epochs(100, 16), milestones=recipe.milestones(10))


def test_an_unknown_named_recipe_is_refused_with_the_list_of_recipes():
    with pytest.raises(ValueError, match=r"recipe: expected one of few-images, got 'many'"):
        presets.get_recipe("many")


def test_the_recipes_are_the_published_ones():
    """The paper: 50 epochs, decay after 35; batch size 32 and 1e-4 for DETRIS-B, 64 and 2e-4 for DETRIS-L."""
    names = ("epochs", "batch_size", "learning_rate", "milestones", "precision", "max_grad_norm")
    values = {}
    for preset in presets.list_presets():
        recipe = presets.recipe(preset)
        arguments = TrainingArguments(**recipe)
        values[preset] = tuple({**vars(arguments), **recipe}[name] for name in names)
    assert values == {
        "detris-b": (50, 32, 1e-4, [35], "auto", 0.0),
        "detris-b-half": (50, 32, 1e-4, [35], "auto", 0.0),
        "detris-b-plus": (50, 32, 1e-4, [35], "auto", 0.0),
        "detris-l": (50, 64, 2e-4, [35], "auto", 0.0),
        "detris-l-mixed": (50, 64, 2e-4, [35], "auto", 0.0),
        # One learning rate for all groups of weights, as in the authors' configurations.
        **dict.fromkeys(PAPER_ROWS, (50, 32, 1e-4, [35], "auto", 0.0)),
        "tiny": (4, 16, 2e-3, [3], "fp32", 1.0),
    }


def test_published_averages_are_those_of_the_splits():
    """The paper prints both, some averages truncated; a digit that was copied wrongly would differ."""
    rows = {name: presets.published(name) for name in presets.list_presets() if presets.published(name)}
    assert len(rows) == 11
    for row in rows.values():
        *splits, average = row.miou
        assert average == pytest.approx(sum(splits) / 3, abs=0.07)
        assert row.source == ("Table 3" if row.backbone_update is None else "Table 2")


@pytest.mark.parametrize(
    ("build", "kind"), [*((image_encoder, kind) for kind in IMAGE), *((text_encoder, kind) for kind in TEXT)]
)
def test_lora_finds_queries_and_values_of_every_known_encoder(build, kind):
    encoder = build(kind)
    config = presets.get("table2-lora").text_adapter
    adapted = adapt_backbone(encoder, config)
    width, depth = encoder.config.hidden_size, encoder.config.num_hidden_layers
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == depth * 2 * config.r * (width + width)


@pytest.mark.parametrize("name", PAPER_ROWS)
def test_the_rows_of_the_tables_scale_to_other_encoders(name):
    """A Vision Transformer and a BERT of other depths: the command line uses presets with any pair."""
    vision, text = image_encoder("vit"), text_encoder("bert", num_hidden_layers=2)
    config = presets.get(name).scaled_to(vision.config, text.config)
    vision_model = adapt_backbone(vision, config.vision_adapter)
    text_model = adapt_backbone(text, config.text_adapter)
    trained = [any(p.requires_grad for p in model.parameters()) for model in (vision_model, text_model)]
    assert trained == [config.vision_adapter is not None, config.text_adapter is not None]
    if config.bridger is not None:
        assert config.bridger.vision_after_blocks[-1] == 2
        assert config.bridger.text_after_blocks[-1] == 1


def test_each_call_returns_a_new_recipe():
    presets.recipe("tiny")["milestones"].append(40)
    presets.recipe("detris-l")["epochs"] = 1
    assert presets.recipe("tiny")["milestones"] == [3]
    assert "epochs" not in presets.recipe("detris-l")


def test_random_backbones_depend_on_the_seed_and_are_written_once(tmp_path):
    config = presets.random_backbones(presets.get("tiny"), tmp_path / "a", seed=1)
    presets.random_backbones(presets.get("tiny"), tmp_path / "b", seed=1)
    presets.random_backbones(presets.get("tiny"), tmp_path / "c", seed=2)
    assert config.vision_name_or_path == str(tmp_path / "a/vision-1")
    for kind in ("vision", "text"):
        a, b, c = (
            load_file(tmp_path / run / f"{kind}-{seed}" / "model.safetensors")
            for run, seed in zip("abc", (1, 1, 2), strict=True)
        )
        assert all(a[name].equal(b[name]) for name in a)
        assert not all(a[name].equal(c[name]) for name in a)
    before = (tmp_path / "a/vision-1/model.safetensors").stat().st_mtime_ns
    presets.random_backbones(presets.get("tiny"), tmp_path / "a", seed=1)
    assert (tmp_path / "a/vision-1/model.safetensors").stat().st_mtime_ns == before


def test_random_backbones_of_other_sizes_are_not_reused(tmp_path):
    presets.random_backbones(presets.get("tiny"), tmp_path)
    config = presets.get("tiny")
    config.text_config.num_hidden_layers = 2
    with pytest.raises(
        ValueError, match=r"text-0: expected a backbone with num_hidden_layers=2, got 3; choose another"
    ):
        presets.random_backbones(config, tmp_path)
