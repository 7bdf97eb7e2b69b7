"""Options of `detris train`: the recipe of the preset, and the precedence of its sources."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from peft import PeftConfig

from detris_peft import DenseAlignerConfig, DetrisConfig, DetrisForReferringSegmentation, TextAdapterConfig, presets
from detris_peft.cli.backbone_selection import Backbone, load_backbone
from detris_peft.cli.config_changes import apply_config_options
from detris_peft.cli.train import parse_arguments
from detris_peft.cli.train_options import describe_recipe
from detris_peft.cli.training_run import create_config
from detris_peft.modeling.bridger_config import BridgerConfig
from detris_peft.training import TrainingArguments
from tests.helpers.original_files import original_weights
from tests.helpers.tiny_models import IMAGE, TEXT, image_encoder, inputs, text_encoder


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Parse the options in an empty folder, without examples/, as an installed wheel does."""
    monkeypatch.chdir(tmp_path)

    def parse(*arguments, config=None):
        if config is not None:
            (tmp_path / "options.yaml").write_text(config)
            arguments = (*arguments, "--config", "options.yaml")
        run, _, _, training = parse_arguments(arguments)
        return run, training

    return parse


def test_the_recipe_of_the_preset_is_used(parse):
    run, training = parse("--preset", "detris-l")
    assert run.preset == "detris-l"
    assert training == TrainingArguments(batch_size=64, learning_rate=2e-4, precision="auto")


def test_the_default_preset_has_a_recipe_too(parse):
    run, training = parse()
    assert training == TrainingArguments(**presets.recipe(run.preset))


def test_the_recipe_of_the_preset_in_the_yaml_file_is_used(parse):
    run, training = parse(config="preset: detris-l")
    assert (run.preset, training.batch_size, training.learning_rate) == ("detris-l", 64, 2e-4)


def test_the_preset_of_the_command_line_wins_over_the_yaml_file(parse):
    run, training = parse("--preset", "tiny", config="preset: detris-l")
    assert (run.preset, training.batch_size, training.milestones) == ("tiny", 16, [3])


def test_command_line_wins_over_yaml_over_recipe_over_defaults(parse):
    config = "preset: detris-l\nbatch_size: 8\nlearning_rate: 1.0e-3\nepochs: 7"
    _, training = parse("--batch_size", "2", config=config)
    assert training.batch_size == 2  # also in the YAML file and in the recipe
    assert training.learning_rate == 1e-3  # also in the recipe
    assert training.precision == "fp32"  # auto of the recipe, on this CPU
    assert training.epochs == 7  # YAML file
    assert training.milestones == TrainingArguments().milestones


def test_the_values_used_of_the_recipe_are_described_in_one_line(parse):
    run, training = parse("--preset", "detris-l", "--batch_size", "16")
    line = describe_recipe(run, training)
    assert line == "Recipe of detris-l: precision=fp32, learning_rate=0.0002 (overridden: batch_size)"
    run, training = parse("--preset", "detris-b", "--precision", "bf16")
    assert describe_recipe(run, training) == "Recipe of detris-b: none (overridden: precision)"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("preset: huge", "preset: expected one of .*, got 'huge'"),
        ("preset: [tiny]", "preset: expected one of"),
        ("batch_siz: 3", "expected names of options, got batch_siz; see --help"),
        ("- batch_size", "expected options such as `batch_size: 32`, got a list"),
        ("a: b: c", "expected YAML, got mapping values are not allowed here"),
        ("batch_size: 0", "batch_size: expected at least 1, got 0"),
    ],
)
def test_a_wrong_yaml_file_is_refused_in_one_line(parse, config, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(config=config)
    assert "\n" not in str(caught.value)


def test_a_missing_yaml_file_is_named(parse):
    with pytest.raises(FileNotFoundError, match="expected a YAML file of options, got none"):
        parse("--config", "none.yaml")


# --- Fields of DetrisConfig ------------------------------------------------------------------------------------------


def test_every_field_of_the_config_and_of_the_adapters_is_an_option(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    own = [f.name for f in fields(DetrisConfig) if f.name in DetrisConfig.__annotations__]
    shared = {f.name for f in fields(PeftConfig)}
    for adapter, cls in (("vision_adapter", DenseAlignerConfig), ("text_adapter", TextAdapterConfig)):
        own += [f"{adapter}.{f.name}" for f in fields(cls) if f.name not in shared]
    assert len(own) > 35
    for name in own:
        assert f"--{name}" in help_text, name
    assert "multiple of the patch size" in help_text  # from the docstring


@pytest.mark.parametrize(
    ("arguments", "yaml", "expected"),
    [
        (["--hidden_dim", "256"], "hidden_dim: 256", {"hidden_dim": 256}),
        (["--extract_layers", "2", "5"], "extract_layers: [2, 5]", {"extract_layers": [2, 5]}),
        (["--dropout", "0.2"], "dropout: 0.2", {"dropout": 0.2}),
        (
            ["--position_interpolation", "official"],
            "position_interpolation: official",
            {"position_interpolation": "official"},
        ),
        (["--vision_adapter.dim", "64"], "vision_adapter: {dim: 64}", {"vision_adapter.dim": 64}),
        (
            ["--text_adapter.layers_to_transform", "1", "2"],
            "text_adapter: {layers_to_transform: [1, 2]}",
            {"text_adapter.layers_to_transform": [1, 2]},
        ),
        (
            ["--text_adapter.layers_to_transform", "3"],
            "text_adapter: {layers_to_transform: 3}",
            {"text_adapter.layers_to_transform": 3},
        ),
        (
            ["--text_adapter.layers_to_transform", "none"],  # all blocks, which is not the default
            "text_adapter: {layers_to_transform: null}",
            {"text_adapter.layers_to_transform": None},
        ),
        (["--text_adapter", "none"], "text_adapter: null", {"text_adapter": None}),
        (["--text_adapter", "null"], "text_adapter: none", {"text_adapter": None}),
        (
            ["--text_adapter.modules_to_save", "final_layer_norm"],
            "text_adapter: {modules_to_save: [final_layer_norm]}",
            {"text_adapter.modules_to_save": ["final_layer_norm"]},
        ),
        (["--vision_adapter", "{dim: 64}"], "vision_adapter.dim: 64", None),
    ],
)
def test_config_options_on_the_command_line_and_in_yaml(parse, arguments, yaml, expected):
    configs = []
    for run in (parse(*arguments)[0], parse(config=yaml)[0]):
        if expected is not None:
            assert run.config_fields == expected
        config = apply_config_options(presets.get("detris-b"), run.config_fields)
        for name, value in (expected or {"vision_adapter.dim": 64}).items():
            field, _, nested = name.partition(".")
            got = getattr(config, field)
            assert (getattr(got, nested) if nested else got) == value
        configs.append(config.to_dict())
    assert configs[0] == configs[1]


def test_the_command_line_wins_over_yaml_for_config_options(parse):
    run, _ = parse("--vision_adapter.dim", "32", config="vision_adapter: {dim: 64, scale: 0.1}\nhidden_dim: 256")
    assert run.config_fields == {"vision_adapter.dim": 32, "vision_adapter.scale": 0.1, "hidden_dim": 256}


def test_target_modules_as_a_name_or_as_a_list(parse):
    run, _ = parse("--vision_adapter.target_modules", r".*\.[02]\.mlp", "--text_adapter.target_modules", "[mlp]")
    config = apply_config_options(presets.get("detris-b"), run.config_fields)
    assert config.vision_adapter.target_modules == r".*\.[02]\.mlp"
    assert config.vision_adapter.layers_to_transform is None
    assert config.text_adapter.target_modules == {"mlp"}
    assert config.text_adapter.layers_to_transform == [1, 3, 5, 7, 9, 11]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("hidden_dim: wide", "options.yaml: hidden_dim: expected int, got 'wide'"),
        ("hidden_dim: 64.5", "hidden_dim: expected int, got 64.5"),
        ("hidden_dim: true", "hidden_dim: expected int, got True"),
        ("extract_layers: 3", r"extract_layers: expected list\[int\], got 3"),
        ("position_interpolation: fast", "position_interpolation: expected 'backbone' or 'official', got 'fast'"),
        ("vision_adapter: {dims: 64}", "expected names of options, got vision_adapter.dims; see --help, or use visi"),
        ("vision_adapter: {dim: x}", "vision_adapter.dim: expected int, got 'x'"),
        ("vision_adapter: 64", "vision_adapter: expected dict or None, got 64"),
        ("vision_adapter: {dim: 64}\nvision_adapter.dim: 32", "expected vision_adapter.dim once, got it twice"),
        ("3: 4", "expected names of options, got 3"),
        ("null: 4", "expected names of options, got None"),
        ("batch_size: '8'", "batch_size: expected int, got '8'"),
        ("batch_size: null", "batch_size: expected int, got None"),
        ("dataset: 7", "dataset: expected str, got 7"),
        ("streaming: maybe", "streaming: expected bool, got 'maybe'"),
        ("batch_size: 4\nbatch_size: 8", "batch_size"),
    ],
)
def test_options_of_a_wrong_type_in_yaml_are_named(parse, config, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(config=config)
    assert "\n" not in str(caught.value)


def test_no_in_yaml_is_text_where_text_is_expected(parse):
    """YAML reads `no` as false."""
    assert parse(config="val_split: no")[0].val_split == "no"
    with pytest.raises(ValueError, match="on_nan: expected one of stop, skip, got 'yes'"):
        parse(config="on_nan: yes")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden_dim", "wide"], "--hidden_dim: expected an integer, got 'wide'"),
        (["--hidden_dims", "64"], "--hidden_dims; use --hidden_dim"),
        (["--vision_adapter.dims", "64"], "--vision_adapter.dims; use --vision_adapter.dim"),
        (["--position_interpolation", "oficial"], "--position_interpolation.*expected one of backbone, official"),
        (["--vision_adapter", "{dim"], "--vision_adapter"),
    ],
)
def test_wrong_config_options_are_usage_errors(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        parse_arguments(arguments)
    assert ended.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_contradicting_options_are_refused(parse):
    with pytest.raises(ValueError, match=r"expected --vision_adapter none or --vision_adapter\.dim, got both"):
        parse("--vision_adapter", "none", "--vision_adapter.dim", "64")
    with pytest.raises(ValueError, match="expected --text_model or --text_name_or_path, got both"):
        parse("--text_model", "a", "--text_name_or_path", "b")
    with pytest.raises(ValueError, match="--vision_adapter: expected dict or None, got 7"):
        parse("--vision_adapter", "7")


# --- Backbones -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """A folder with every supported backbone."""
    folder = tmp_path_factory.mktemp("backbones")
    for kind in IMAGE:
        image_encoder(kind).save_pretrained(folder / f"image_{kind}")
    for kind in TEXT:
        text_encoder(kind).save_pretrained(folder / f"text_{kind}")
    return folder


def options_for(*arguments):
    run, _, selected, _ = parse_arguments(arguments)
    return create_config(run, selected, Path("unused"))[0]


SMALL = ("--hidden_dim", "40", "--neck_heads", "4", "--decoder_heads", "4", "--decoder_ffn_dim", "24")


@pytest.mark.parametrize("image", IMAGE)
@pytest.mark.parametrize("text", TEXT)
def test_every_pair_of_from_backbones_works_from_the_command_line(backbones, image, text):
    """The backbones' own configs decide classes, sizes and what depends on them, whatever the preset's are."""
    names = {"vision": str(backbones / f"image_{image}"), "text": str(backbones / f"text_{text}")}
    config = options_for("--vision_model", names["vision"], "--text_model", names["text"], *SMALL)
    assert config.vision_config.architectures == [IMAGE[image][0].__name__]
    assert config.text_config.architectures == [TEXT[text][0].__name__]
    assert (config.vision_adapter.text_dim, config.extract_layers) == (48, [0, 1])
    assert config.vision_adapter.layers_to_transform == config.text_adapter.layers_to_transform == [0, 1, 2]
    assert config.pad_token_id == (1 if text in ("siglip", "xlm_roberta") else 0)
    loaded = {kind: load_backbone(config, kind) for kind in names}
    for kind, cls in (("vision", IMAGE[image][0]), ("text", TEXT[text][0])):
        weights, expected = loaded[kind].state_dict(), cls.from_pretrained(names[kind]).state_dict()
        assert weights.keys() == expected.keys()
        assert all(weights[key].equal(value) for key, value in expected.items())
    if (image, text) in (("dinov2", "bert"), ("clip", "siglip")):  # the others are covered by tests/modeling
        model = DetrisForReferringSegmentation.from_backbones(loaded["vision"], loaded["text"], config)
        assert model(**inputs(pad=config.pad_token_id)).loss.isfinite()


def test_a_bridger_is_scaled_to_the_encoders_and_changed_by_field(backbones):
    options = ("--vision_model", str(backbones / "image_vit"), "--text_model", str(backbones / "text_bert"), *SMALL)
    none = ("--vision_adapter", "none")
    assert options_for(*options, *none, "--bridger", "{dim: 16}").bridger == BridgerConfig(16, [0, 1, 2], [0, 1, 2])
    bridger = options_for(*options, "--preset", "table2-etris", "--bridger", "{num_heads: 4}").bridger
    assert bridger == BridgerConfig(128, [0, 1, 2], [0, 1, 2], num_heads=4)
    bridger = options_for(*options, *none, "--bridger", "{vision_after_blocks: [2], text_after_blocks: [1]}").bridger
    assert bridger == BridgerConfig(128, [2], [1])
    assert options_for(*options, "--preset", "table2-etris", "--bridger", "none").bridger is None


def test_an_adapter_of_peft_needs_only_its_type(backbones):
    options = ("--vision_model", str(backbones / "image_vit"), "--text_model", str(backbones / "text_bert"), *SMALL)
    config = options_for(*options, "--vision_adapter", "{peft_type: LORA, r: 8}")
    assert (config.vision_adapter.peft_type, config.vision_adapter.r) == ("LORA", 8)
    assert config.text_adapter.peft_type == "TEXT_ADAPTER"


def test_explicit_layers_are_kept(backbones):
    config = options_for(
        *("--vision_model", str(backbones / "image_vit"), "--text_model", str(backbones / "text_bert"), *SMALL),
        *("--extract_layers", "2", "--vision_adapter.layers_to_transform", "0"),
    )
    assert (config.extract_layers, config.vision_adapter.layers_to_transform) == ([2], 0)
    with pytest.raises(ValueError, match=r"extract_layers=\[4, 8\]: expected blocks of the image encoder, 0 to 2"):
        options_for("--vision_model", str(backbones / "image_vit"), "--preset", "tiny", "--extract_layers", "4", "8")


def test_the_name_fields_of_the_config_select_backbones_too(backbones):
    vision, text = str(backbones / "image_clip"), str(backbones / "text_clip")
    config = options_for("--vision_name_or_path", vision, "--text_name_or_path", text, *SMALL)
    assert (config.vision_name_or_path, config.text_name_or_path) == (vision, text)
    assert config.vision_config.model_type == "clip_vision_model"


def test_a_backbone_config_is_for_presets_without_pretrained_backbones(backbones):
    own = "{model_type: vit, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, image_size: 32}"
    config = options_for("--preset", "tiny", "--vision_config", own, "--image_size", "64")
    assert (config.vision_config.model_type, config.vision_config.num_hidden_layers) == ("vit", 2)
    with pytest.raises(
        ValueError, match="--vision_config: expected a preset without pretrained backbones, such as ti"
    ):
        options_for("--vision_model", str(backbones / "image_vit"), "--vision_config", own, "--preset", "tiny")


def test_a_backbone_of_the_other_kind_is_refused(backbones):
    with pytest.raises(ValueError, match="expected an image encoder, got a model of type bert; pass another --vision"):
        options_for("--preset", "tiny", "--vision_model", str(backbones / "text_bert"))


def test_original_files_decide_the_sizes_too(tmp_path):
    """Nothing is written before the run is accepted."""
    vision = image_encoder(hidden_size=64, num_attention_heads=1, patch_size=14, image_size=28, mlp_ratio=2)
    text = text_encoder(hidden_size=64, num_attention_heads=1)
    torch.save(original_weights(vision, "vision"), tmp_path / "dino.pth")
    torch.save(original_weights(text, "text"), tmp_path / "clip.pt")
    run, _, selected, _ = parse_arguments(
        ["--dino", str(tmp_path / "dino.pth"), "--clip", str(tmp_path / "clip.pt"), "--hidden_dim", "64"]
    )
    config, backbones = create_config(run, selected, tmp_path / "backbones")
    assert (config.vision_config.hidden_size, config.vision_config.num_hidden_layers) == (64, 3)
    assert (config.text_config.hidden_size, config.vision_adapter.text_dim) == (64, 64)
    assert not (tmp_path / "backbones").exists()
    for kind, name in (("vision", "dino"), ("text", "clip")):
        assert getattr(config, f"{kind}_name_or_path") == str(tmp_path / "backbones" / name)
        backbones[kind].write(overwrite=False)
        load_backbone(config, kind)


def test_written_backbones_are_replaced_only_with_overwrite(tmp_path):
    """The checkpoints of the run in an output_dir depend on its backbones."""
    folder = tmp_path / "backbones/dino"
    models = [image_encoder(hidden_size=64, num_attention_heads=1) for _ in range(2)]
    first, other = (Backbone(str(folder), model.config, model) for model in models)
    first.write(overwrite=False)
    first.write(overwrite=False)
    written = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"dino: expected the weights of the given original file, .*--overwrite"):
        other.write(overwrite=False)
    assert (folder / "model.safetensors").read_bytes() == written
    other.write(overwrite=True)
    assert (folder / "model.safetensors").read_bytes() != written
