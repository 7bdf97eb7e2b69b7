"""Options of `detris train`, YAML files of options, backbones, tokenizers, and configs of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.bad_inputs.case import Case, edit_json, steps, write

TRAIN = "train --preset tiny --data_root data --dataset refshapes --epochs 1 --batch_size 2 --num_workers 0"
FOLDER = "train --preset tiny --dataset folder --epochs 1 --batch_size 2 --num_workers 0 --output_dir new"
VISION, TEXT = "backbones/vision-0", "backbones/text-0"
OWN = f"--vision_model {VISION} --text_model {TEXT}"
PREDICT = "predict --checkpoint run/best --image photo.png --text square --output out.png"


def _edit_config(folder: str, **changes: Any):
    return edit_json(f"{folder}/config.json", **changes)


def _edit_weights(folder: str, remove: str = "", add: str = ""):
    def prepare(root: Path) -> None:
        file = root / folder / "model.safetensors"
        weights = load_file(file)
        first = next(key for key in sorted(weights) if remove in key)
        if add:
            weights[add] = weights[first].clone()
        else:
            del weights[first]
        save_file(weights, file, metadata={"format": "pt"})

    return prepare


def _edit_nested(name: str, field: str, **changes: Any):
    def prepare(root: Path) -> None:
        content = json.loads((root / name).read_text())
        content[field] = {**content[field], **changes}
        (root / name).write_text(json.dumps(content))

    return prepare


def _copy_tokenizer(root: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (root / TEXT / name).write_bytes((root / "run/best" / name).read_bytes())


def _remove(name: str):
    return lambda root: (root / name).unlink()


def yaml(content: str | bytes, *expected: str, name: str) -> Case:
    return Case(name, f"{TRAIN} --config options.yaml", ("options.yaml", *expected), write("options.yaml", content))


CASES = [
    # Command line
    Case("option misspelled", f"{TRAIN} --learning_rat 1", ("--learning_rat", "use --learning_rate"), code=2),
    Case("config field misspelled", f"{TRAIN} --hiden_dim 64", ("--hiden_dim", "use --hidden_dim"), code=2),
    Case("adapter field misspelled", f"{TRAIN} --vision_adapter.dims 64", ("use --vision_adapter.dim",), code=2),
    Case("config field of wrong type", f"{TRAIN} --hidden_dim x", ("--hidden_dim", "an integer", "'x'"), code=2),
    Case("config field out of range", f"{TRAIN} --hidden_dim 2000000000", ("hidden_dim", "16,384", "correct it")),
    Case("hidden_dim without heads", f"{TRAIN} --hidden_dim 66", ("hidden_dim=66", "expected a multiple of 4")),
    Case("extract layer too deep", f"{TRAIN} --extract_layers 4", ("extract_layers=[4]", "0 to 3")),
    Case(
        "adapter layer too deep", f"{TRAIN} --vision_adapter.layers_to_transform 9", ("layers_to_transform", "0 to 3")
    ),
    Case(
        "adapter target missing",
        f"{TRAIN} --vision_adapter.target_modules nope",
        ("vision_adapter: Target modules nope not found", "check the target modules"),
    ),
    Case(
        "adapter input module missing",
        f"{TRAIN} --text_adapter.input_module nope",
        ("text_adapter: input_module", "nope', which does not exist", "set input_module"),
    ),
    Case(
        "module to save missing",
        f"{TRAIN} --text_adapter.modules_to_save nope",
        ("text_adapter: modules_to_save", "got nope", "correct or remove"),
    ),
    Case("adapter dim not a multiple", f"{TRAIN} --text_adapter.dim 20", ("text_adapter.dim=20", "multiple of 16")),
    Case("adapter and none", f"{TRAIN} --text_adapter none --text_adapter.dim 32", ("got both", "remove one")),
    Case(
        "text too long for the encoder",
        f"{TRAIN} --max_text_length 500",
        ("max_text_length=500", "at most 77", "lower"),
    ),
    Case(
        "image size of no patches", f"{TRAIN} --image_size 45", ("image_size=45", "multiple of the patch size", "48")
    ),
    Case("no_target_ratio of 1", f"{TRAIN} --no_target_ratio 1", ("no_target_ratio", "at least 0 and below 1", "1.0")),
    Case("no_target_ratio is nan", f"{TRAIN} --no_target_ratio nan", ("no_target_ratio", "at least 0 and", "nan")),
    Case("mosaic_ratio below 0", f"{TRAIN} --mosaic_ratio -0.1", ("mosaic_ratio", "at least 0 and below 1", "-0.1")),
    Case("mosaic_ratio in percent", f"{TRAIN} --mosaic_ratio 15%", ("--mosaic_ratio", "a number", "'15%'"), code=2),
    Case(
        "no_target_ratio without category ids",
        f"{FOLDER} --no_target_ratio 0.1",
        ("val split: category_id", "got 0 in 2 references", "add category ids, or omit no_target_ratio"),
    ),
    Case(
        "mosaic_ratio without expressions that allow one",
        f"{FOLDER} --mosaic_ratio 0.1",
        ("mosaic_ratio: expected at least 4 images", "got 4 images and 0 such expressions", "omit mosaic_ratio"),
    ),
    Case("preset misspelled", "train --preset tyny", ("preset: expected one of", "tiny", "'tyny'")),
    # YAML
    yaml(
        "hidden_dim: wide",
        "hidden_dim: expected int, got 'wide'",
        "correct it",
        name="yaml config field of wrong type",
    ),
    yaml("epochs: many", "epochs: expected int, got 'many'", "correct it", name="yaml option of wrong type"),
    yaml("mosaic_ratio: rare", "mosaic_ratio: expected float, got 'rare'", "correct it", name="yaml ratio is a word"),
    yaml("epochs: null", "epochs: expected int, got None", "correct it", name="yaml option is null"),
    yaml("3: 4", "expected names of options, got 3", "--help", name="yaml key is a number"),
    yaml("~: 4", "expected names of options, got None", "--help", name="yaml key is null"),
    yaml("mixed_precision: no", "mixed_precision", "use precision: fp32", name="yaml earlier name of precision"),
    yaml("epoch: 3", "got epoch", "use epochs", name="yaml option misspelled"),
    yaml(
        "vision_adapter: {dims: 64}",
        "got vision_adapter.dims",
        "use vision_adapter.dim",
        name="yaml adapter misspelled",
    ),
    yaml("vision_adapter: [64]", "vision_adapter: expected dict or None", "correct it", name="yaml adapter is a list"),
    yaml("epochs: 2\nepochs: 3", "epochs", "remove one", name="yaml key twice"),
    yaml("- epochs", "expected options such as", "got a list", name="yaml is a list"),
    yaml("epochs: 2".encode("utf-16"), "UTF-8", "save it as UTF-8", name="yaml in utf-16"),
    yaml("a: b: c", "expected YAML", "correct that line", name="yaml with a syntax error"),
    yaml("dataset: 7", "dataset: expected str, got 7", "correct it", name="yaml dataset is a number"),
    yaml("position_interpolation: fast", "'backbone' or 'official'", "correct it", name="yaml choice misspelled"),
    Case("yaml missing", f"{TRAIN} --config none.yaml", ("--config: expected a YAML file", "none.yaml")),
    # Backbones
    Case(
        "text encoder as image encoder",
        f"{TRAIN} --vision_model {TEXT}",
        ("expected an image encoder", "clip_text_model", "pass another --vision_model"),
    ),
    Case(
        "backbone folder without config",
        f"{TRAIN} --vision_model data",
        ("expected a vision encoder", "without config.json", "pass another --vision_model"),
    ),
    Case(
        "backbone folder missing",
        f"{TRAIN} --text_model ./nowhere",
        ("nowhere: expected the folder of the text backbone", "pass another --text_model"),
    ),
    Case(
        "backbone config is no json",
        f"{TRAIN} {OWN}",
        ("config.json", "expected JSON", "copy or download it again"),
        write(f"{VISION}/config.json", "{"),
    ),
    Case(
        "backbone config of unknown type",
        f"{TRAIN} {OWN}",
        ("model_type", "'resnext'", "pass another --vision_model"),
        _edit_config(VISION, model_type="resnext"),
    ),
    Case(
        "backbone config with ten million layers",
        f"{TRAIN} {OWN}",
        ("num_hidden_layers from 1 to 1,000", "10000000", "correct it"),
        _edit_config(VISION, num_hidden_layers=10_000_000),
    ),
    Case(
        "backbone weight missing",
        f"{TRAIN} --vision_model {VISION} --output_dir new",
        ("is missing 1 weights", "embeddings", "pass another --vision_model"),
        _edit_weights(VISION, remove="embeddings"),
        may_write=("new",),
    ),
    Case(
        "backbone weight unexpected",
        f"{TRAIN} --vision_model {VISION} --output_dir new",
        ("unexpected weights", "encoder.layer.9.extra", "pass another --vision_model"),
        _edit_weights(VISION, add="encoder.layer.9.extra"),
        may_write=("new",),
    ),
    Case(
        "backbone with fewer layers than weights",
        f"{TRAIN} --text_model {TEXT} --tokenizer run/best --output_dir new",
        ("unexpected weights", "text_model.encoder.layers.2", "pass another --text_model"),
        _edit_config(TEXT, num_hidden_layers=2),
        may_write=("new",),
    ),
    # Tokenizers
    Case(
        "text encoder without tokenizer",
        f"{TRAIN} {OWN} --output_dir new",
        ("tokenizer", "got one without tokenizer.json", "--tokenizer"),
    ),
    Case(
        "tokenizer file cut",
        f"{TRAIN} {OWN} --output_dir new",
        ("tokenizer", "cannot be loaded", "--tokenizer"),
        steps(_copy_tokenizer, write(f"{TEXT}/tokenizer.json", '{"version": ')),
    ),
    Case(
        "tokenizer with another end token",
        f"{TRAIN} {OWN} --output_dir new",
        ("expected eos_token_id=7", "got 159", "correct eos_token_id"),
        steps(_copy_tokenizer, _edit_config(TEXT, eos_token_id=7)),
    ),
    Case(
        "tokenizer larger than the vocabulary",
        f"{TRAIN} --tokenizer run/best --text_config '{{model_type: clip_text_model, hidden_size: 64, vocab_size: 99, "
        "num_attention_heads: 4, num_hidden_layers: 2, eos_token_id: 98, bos_token_id: 97, projection_dim: 64}}' "
        "--output_dir new".replace("}}", "}"),
        ("expected at most 99 tokens", "got 160", "pass the text encoder's own tokenizer"),
    ),
    Case(
        "tokenizer with code",
        f"{TRAIN} {OWN} --output_dir new",
        ("tokenizer", "custom code", "--tokenizer"),
        steps(
            _copy_tokenizer,
            edit_json(f"{TEXT}/tokenizer_config.json", auto_map={"AutoTokenizer": ["x.T", None]}, tokenizer_class="T"),
            write(f"{TEXT}/x.py", "raise SystemExit"),
        ),
    ),
    # Refused before anything is written
    Case(
        "tracker that is not installed",
        f"{TRAIN} --report_to wandb --output_dir new",
        ("report_to", "wandb", "pip install"),
    ),
    Case(
        "batch larger than the dataset",
        f"{TRAIN} --batch_size 999 --output_dir new",
        ("batch_size", "999", "--drop_last false"),
    ),
    Case(
        "checkpoint to resume from missing",
        f"{TRAIN} --resume nowhere --output_dir new",
        ("resume: expected latest or a checkpoint folder", "nowhere", "correct the path"),
    ),
    # Configs and processors of checkpoints
    Case(
        "checkpoint config with an unknown field",
        PREDICT,
        ("hidden_dims: expected a field of DetrisConfig", "use hidden_dim"),
        edit_json("run/best/config.json", hidden_dims=64),
    ),
    Case(
        "checkpoint config with a field of wrong type",
        PREDICT,
        ("hidden_dim='64'", "expected int"),
        edit_json("run/best/config.json", hidden_dim="64"),
    ),
    Case(
        "checkpoint config with ten million layers",
        PREDICT,
        ("num_hidden_layers from 1 to 1,000", "10000000"),
        _edit_nested("run/best/config.json", "vision_config", num_hidden_layers=10_000_000),
    ),
    Case(
        "checkpoint config with an unknown adapter field",
        PREDICT,
        ("vision_adapter.dims", "expected a field of DenseAlignerConfig"),
        _edit_nested("run/best/config.json", "vision_adapter", dims=64),
    ),
    Case(
        "processor config is empty",
        PREDICT,
        ("processor_config.json: expected image_size", "copy or download the file again"),
        write("run/best/processor_config.json", "{}"),
    ),
    Case(
        "processor config missing",
        PREDICT,
        ("expected the processor's processor_config.json", "save_pretrained"),
        _remove("run/best/processor_config.json"),
    ),
    Case(
        "processor config is a list",
        PREDICT,
        ("processor_config.json", "got a list"),
        write("run/best/processor_config.json", "[]"),
    ),
    Case(
        "processor of another image size",
        PREDICT,
        ("processor: expected image_size=48", "got 96", "use the processor that was saved with the model"),
        _edit_nested("run/best/processor_config.json", "image_processor", image_size=96),
    ),
    Case(
        "processor with image_std of zero",
        PREDICT,
        ("image_std", "three above 0", "correct it"),
        _edit_nested("run/best/processor_config.json", "image_processor", image_std=[0.0, 0.1, 0.1]),
    ),
    Case(
        "processor with a tokenizer that is cut",
        PREDICT,
        ("the processor cannot be loaded", "copy or download its files again"),
        write("run/best/tokenizer.json", '{"version":'),
    ),
]
