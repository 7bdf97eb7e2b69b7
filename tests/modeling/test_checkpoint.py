"""Adapter-only checkpoints: contents, loading, saving, and error messages."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, CLIPTextModelWithProjection, Dinov2WithRegistersModel

from detris_peft import DetrisConfig, DetrisForReferringSegmentation, DetrisProcessor
from detris_peft.modeling import checkpoint
from detris_peft.modeling.checkpoint import loading, saving
from tests.helpers.checkpoints import contents, logits, make
from tests.helpers.reference import FIXTURES
from tests.helpers.tiny_models import image_encoder, inputs, perturb, text_encoder, tiny_config

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
WEIGHT_FILES = (
    "head.safetensors",
    "vision_adapter/adapter_model.safetensors",
    "text_adapter/adapter_model.safetensors",
)


# -- contents ---------------------------------------------------------------------------------------------------------


def test_checkpoint_contains_exactly_the_trained_weights(saved):
    """Trainable weights and running statistics, compared as exact sets of keys."""
    model, folder = saved
    assert set(contents(folder)) == {
        ".detris_peft",
        "README.md",
        "config.json",
        "manifest.json",
        "model.safetensors.index.json",
        "head.safetensors",
        *(
            f"{a}/adapter_{f}"
            for a in ("vision_adapter", "text_adapter")
            for f in ("config.json", "model.safetensors")
        ),
    }
    stored = {}
    for file, prefix in zip(WEIGHT_FILES, ("", "vision_model.", "text_model."), strict=True):
        stored |= {prefix + k: v for k, v in load_file(folder / file).items()}

    def without_adapter_name(name: str) -> str:
        return name.replace("_branches.default.", "_branches.")

    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    statistics = {n: b for n, b in model.named_buffers() if n.rpartition(".")[2] in STATISTICS}
    expected = {without_adapter_name(n): v for n, v in (trainable | statistics).items()}
    assert set(stored) == set(expected)
    for name, value in expected.items():
        assert torch.equal(stored[name], value), name
    frozen = {without_adapter_name(n) for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert not frozen & set(stored)
    assert set(checkpoint.trainable_state_dict(model)) == set(stored)


@pytest.mark.parametrize("without", [("vision_adapter",), ("text_adapter",), ("vision_adapter", "text_adapter")])
def test_adapters_may_be_omitted(backbones, tmp_path, without):
    model = make(backbones, **dict.fromkeys(without))
    model.save_pretrained(tmp_path / "run")
    assert not [name for name in without if (tmp_path / "run" / name).exists()]
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")
    assert torch.equal(logits(model), logits(loaded))


def test_backbone_paths_are_relative(saved):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    assert config["vision_name_or_path"] == "../../backbones/vision"
    assert config["text_name_or_path"] == "../../backbones/text"
    for file in ("config.json", "README.md"):
        assert str(folder.parents[1]) not in (folder / file).read_text()


def test_files_have_the_default_permissions(saved):
    """The staging folder and safetensors files are private while they are written."""
    _, folder = saved
    reference = folder.parent / "plain"
    reference.write_text("")
    modes = {file.stat().st_mode & 0o444 for file in folder.rglob("*") if file.is_file()}
    assert modes == {reference.stat().st_mode & 0o444}


# -- loading ----------------------------------------------------------------------------------------------------------


def test_checkpoint_loads_over_the_backbones_that_it_names(saved):
    model, folder = saved
    for loaded in (DetrisForReferringSegmentation.from_pretrained(folder), AutoModel.from_pretrained(folder)):
        assert type(loaded) is DetrisForReferringSegmentation
        assert not any(m.training for m in loaded.modules() if not isinstance(m, PeftModel))
        assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
            n for n, p in model.named_parameters() if p.requires_grad
        }
        for (name, one), other in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
            assert torch.equal(one, other), name
        assert torch.equal(logits(model), logits(loaded))


def test_loading_does_not_depend_on_the_seed(saved):
    """Two loads with different seeds give the same weights and statistics."""
    _, folder = saved
    torch.manual_seed(1)
    one = DetrisForReferringSegmentation.from_pretrained(folder)
    torch.manual_seed(2)
    other = DetrisForReferringSegmentation.from_pretrained(folder)
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_peft_loads_each_adapter_alone(saved):
    """`PeftModel.from_pretrained` on the same folder gives bit-identical encoders."""
    model, folder = saved
    vision = Dinov2WithRegistersModel.from_pretrained(folder.parents[1] / "backbones" / "vision")
    vision = PeftModel.from_pretrained(vision, folder, subfolder="vision_adapter", is_trainable=True).eval()
    text = CLIPTextModelWithProjection.from_pretrained(folder.parents[1] / "backbones" / "text")
    text = PeftModel.from_pretrained(text, folder, subfolder="text_adapter", is_trainable=True).eval()
    batch = inputs()
    with torch.no_grad():
        expected, _ = model.encode_text(batch["input_ids"])
        feature_maps = model.encode_image(batch["pixel_values"], expected)
        states = text(input_ids=batch["input_ids"]).last_hidden_state
        out = vision(batch["pixel_values"], text_states=states).last_hidden_state
        frozen = vision.requires_grad_(False)(batch["pixel_values"], text_states=states).last_hidden_state
    assert torch.equal(states, expected)
    patches = feature_maps[-1].flatten(2).transpose(1, 2)
    assert torch.equal(out[:, -36:], patches)
    # PyTorch sums in another order if the weights are frozen.
    torch.testing.assert_close(frozen[:, -36:], patches, atol=1e-5, rtol=0)


def test_checkpoint_can_be_moved_together_with_its_backbones(saved, tmp_path):
    model, _ = saved
    before = logits(model)
    (tmp_path / "elsewhere").mkdir()
    for name in ("runs", "backbones"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "elsewhere" / "runs" / "one")
    assert torch.equal(logits(loaded), before)
    # A checkpoint saved again in another folder still finds them.
    loaded.save_pretrained(tmp_path / "other" / "deep" / "run")
    again = DetrisForReferringSegmentation.from_pretrained(tmp_path / "other" / "deep" / "run")
    assert torch.equal(logits(again), before)


def test_backbones_may_be_inside_the_checkpoint_folder(backbones, tmp_path):
    shutil.copytree(backbones, tmp_path / "run" / "backbones")
    model = make(tmp_path / "run" / "backbones")
    model.save_pretrained(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert torch.equal(logits(DetrisForReferringSegmentation.from_pretrained(tmp_path / "moved")), logits(model))


def test_passed_backbones_replace_the_named_ones(saved):
    model, folder = saved
    shutil.move(folder.parents[1] / "backbones", folder.parents[1] / "kept")
    vision = Dinov2WithRegistersModel.from_pretrained(folder.parents[1] / "kept" / "vision")
    text = CLIPTextModelWithProjection.from_pretrained(folder.parents[1] / "kept" / "text")
    loaded = DetrisForReferringSegmentation.from_pretrained(folder, vision_model=vision, text_model=text)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.vision_name_or_path == str(folder.parents[1] / "kept" / "vision")


def test_keyword_arguments_reach_the_backbones(saved):
    _, folder = saved
    loaded = DetrisForReferringSegmentation.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager", device_map="cpu"
    )
    assert loaded.dtype == loaded.neck.sentence_proj.weight.dtype == torch.bfloat16
    assert loaded.vision_model.config._attn_implementation == "eager"
    with pytest.raises(TypeError, match="from_pretrained got unexpected keyword arguments: load_in_8bit"):
        DetrisForReferringSegmentation.from_pretrained(folder, load_in_8bit=True)


def test_revisions_are_saved_and_requested(backbones, tmp_path, monkeypatch):
    """A pinned revision is requested only for the backbone that it was set for."""
    model = make(backbones)
    model.config.vision_name_or_path, model.config.vision_revision = "user/dino", "v1"
    model.save_pretrained(tmp_path / "run")
    requested = []

    def from_hub(kind, name, *args, revision=None, **keywords):
        requested.append((name, revision))
        cls = Dinov2WithRegistersModel if kind == "vision" else CLIPTextModelWithProjection
        return cls.from_pretrained(backbones / kind)

    monkeypatch.setattr(loading, "load_pretrained_backbone", from_hub)
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")
    assert requested == [("user/dino", "v1"), (str(backbones / "text"), None)]
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.vision_name_or_path == str(backbones / "vision")
    assert loaded.config.vision_revision is None


def test_position_interpolation_is_saved(backbones, tmp_path):
    """The adapters were trained with it."""
    model = make(backbones, position_interpolation="official")
    model.save_pretrained(tmp_path / "run")
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")
    assert torch.equal(logits(loaded), logits(model))
    plain = DetrisConfig.from_pretrained(tmp_path / "run")
    plain.position_interpolation = "backbone"
    other = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run", config=plain)
    assert not torch.allclose(logits(other), logits(model), atol=1e-4)


def test_checkpoint_of_version_0_1_0_dev0_loads(tmp_path):
    """Its config names the field `tap_layers`. The recorded logits are those of that version."""
    shutil.copytree(FIXTURES / "checkpoint_0.1.0.dev0", tmp_path / "old")
    expected = load_file(tmp_path / "old" / "expected.safetensors")
    model = DetrisForReferringSegmentation.from_pretrained(tmp_path / "old")
    with torch.no_grad():
        actual = model(expected["pixel_values"], expected["input_ids"]).logits
    torch.testing.assert_close(actual, expected["logits"], rtol=0, atol=1e-5)
    processor = DetrisProcessor.from_pretrained(tmp_path / "old")
    batch = processor(images=np.zeros((40, 30, 3), np.uint8), text="a red mug", return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 56, 56)
    assert batch["input_ids"].shape == (1, 9)

    model.save_pretrained(tmp_path / "new")
    assert "tap_layers" in json.loads((tmp_path / "old" / "config.json").read_text())
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["extract_layers"] == [0, 1]
    assert "tap_layers" not in config
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "new")
    with torch.no_grad():
        assert torch.equal(loaded(expected["pixel_values"], expected["input_ids"]).logits, actual)


# -- saving -----------------------------------------------------------------------------------------------------------


def test_saving_replaces_an_earlier_checkpoint(saved):
    """Stale adapter files are removed, unrelated files are kept."""
    model, folder = saved
    (folder / "metrics.json").write_text("{}")
    other = make(folder.parents[1] / "backbones", text_adapter=None)
    other.save_pretrained(folder)
    assert not (folder / "text_adapter").exists()
    assert (folder / "metrics.json").exists()
    assert torch.equal(logits(DetrisForReferringSegmentation.from_pretrained(folder)), logits(other))
    model.save_pretrained(folder)
    assert torch.equal(logits(DetrisForReferringSegmentation.from_pretrained(folder)), logits(model))


@pytest.mark.parametrize("failing", ["save_file", "model_card", "_portable"])
def test_failed_save_keeps_the_earlier_checkpoint(saved, monkeypatch, failing):
    model, folder = saved
    before = contents(folder.parent)
    perturb(model)

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(saving, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(folder)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(folder.parent / "new")
    assert contents(folder.parent) == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_other_ranks_write_nothing(saved, tmp_path):
    saved[0].save_pretrained(tmp_path / "second", is_main_process=False)
    assert not (tmp_path / "second").exists()


def test_gathered_weights_are_saved_instead_of_the_models_own(saved, tmp_path):
    model, _ = saved
    gathered = {k: v + 1 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.save_pretrained(tmp_path / "gathered", state_dict=gathered)
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "gathered")
    for name, value in loaded.state_dict().items():
        trained = name in gathered and ("_branches." in name or not name.startswith(("vision_model", "text_model")))
        assert torch.equal(value, gathered[name] if trained else model.state_dict()[name]), name
    del gathered["neck.sentence_proj.weight"]
    with pytest.raises(
        ValueError, match=r"state_dict: .* but 1 are missing, .* \['neck.sentence_proj.weight'\]; pass"
    ):
        model.save_pretrained(tmp_path / "incomplete", state_dict=gathered)
    assert not (tmp_path / "incomplete").exists()


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda weight: weight.new_zeros(0), "(0,), torch.float32"),
        (torch.flatten, "(960,), torch.float32"),
        (torch.Tensor.int, "(40, 24), torch.int32"),
    ],
    ids=["empty", "flat", "integers"],
)
def test_weights_that_were_not_gathered_are_not_saved(saved, tmp_path, change, got):
    """FSDP and DeepSpeed give flat or empty weights, which could not be loaded."""
    model, _ = saved
    state_dict = model.state_dict()
    state_dict["neck.sentence_proj.weight"] = change(state_dict["neck.sentence_proj.weight"])
    match = rf"expected neck.sentence_proj.weight .*\(\(40, 24\), .*, got {re.escape(got)}; pass the gathered weights"
    with pytest.raises(ValueError, match=match):
        model.save_pretrained(tmp_path / "sharded", state_dict=state_dict)
    assert not (tmp_path / "sharded").exists()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_fsdp_wrapped_module."])
def test_names_of_wrappers_are_removed_from_gathered_weights(saved, tmp_path, prefix):
    model, _ = saved
    model.save_pretrained(tmp_path / "run", state_dict={prefix + k: v for k, v in model.state_dict().items()})
    assert torch.equal(logits(DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")), logits(model))


def test_a_model_with_a_compiled_module_can_be_saved(saved, tmp_path):
    model, _ = saved
    expected = logits(model)
    model.neck = torch.compile(model.neck)
    model.save_pretrained(tmp_path / "run")
    assert torch.equal(logits(DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")), expected)


def test_the_working_directory_may_change_before_saving(saved, monkeypatch):
    _, folder = saved
    monkeypatch.chdir(folder.parents[1])
    model = make(Path("backbones"))
    (folder.parents[1] / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    model.save_pretrained("run")
    assert torch.equal(logits(DetrisForReferringSegmentation.from_pretrained("run")), logits(model))


def test_saving_to_a_file_raises(saved, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="/file: expected a folder to save to, got a file"):
        saved[0].save_pretrained(tmp_path / "file")


def test_saving_does_not_change_the_model(saved, tmp_path):
    model, _ = saved
    before = copy.deepcopy(model.config.to_dict()), logits(model)
    model.save_pretrained(tmp_path / "again")
    assert model.config.to_dict() == before[0]
    assert torch.equal(logits(model), before[1])
    assert not model.vision_model.peft_config["default"].inference_mode


# -- errors -----------------------------------------------------------------------------------------------------------


def assert_load_raises(error, match, folder, **kwargs):
    with pytest.raises(error, match=match) as raised:
        DetrisForReferringSegmentation.from_pretrained(folder, **kwargs)
    assert "\n" not in str(raised.value)


def test_missing_folder(tmp_path):
    match = "nowhere: expected a checkpoint folder or a Hub id"
    assert_load_raises(FileNotFoundError, match, tmp_path / "nowhere")
    assert_load_raises(FileNotFoundError, rf"^\./{match}", "./nowhere")
    match = "no such folder, and the download from the Hub failed"
    assert_load_raises(FileNotFoundError, f"^nobody/nothing: {match}", "nobody/nothing")
    assert_load_raises(FileNotFoundError, f"^not a name: {match}", "not a name")


@pytest.mark.parametrize("file", ["head.safetensors", "vision_adapter/adapter_model.safetensors", "text_adapter"])
def test_missing_file(saved, file):
    _, folder = saved
    (shutil.rmtree if (folder / file).is_dir() else Path.unlink)(folder / file)
    assert_load_raises(
        FileNotFoundError, f"{file}.* is missing from the checkpoint; copy or download the complete folder", folder
    )


def test_missing_config(saved):
    _, folder = saved
    (folder / "config.json").unlink()
    match = "one: expected a checkpoint written by .*save_pretrained, got a folder without config.json"
    assert_load_raises(FileNotFoundError, match, folder)
    match = match.replace("one:", "one/best:")
    assert_load_raises(FileNotFoundError, match, folder, subfolder="best")


def test_subfolder(saved):
    model, folder = saved
    loaded = DetrisForReferringSegmentation.from_pretrained(folder.parent, subfolder="one")
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("file", WEIGHT_FILES)
@pytest.mark.parametrize("length", [0, 100, -10])
def test_truncated_file(saved, file, length):
    """With and without a manifest, which earlier versions did not write."""
    _, folder = saved
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[:length])
    match = f"one: expected the weights that manifest.json describes, but {file} has .* bytes, .*; copy or download"
    assert_load_raises(ValueError, match, folder)
    (folder / "manifest.json").unlink()
    match = f"{file}: expected a complete safetensors file, got .*; copy or download it again"
    assert_load_raises(ValueError, match, folder)


@pytest.mark.parametrize("file", WEIGHT_FILES)
def test_missing_unexpected_and_misshapen_weights(saved, file):
    _, folder = saved
    (folder / "manifest.json").unlink()
    weights = load_file(folder / file)
    key = sorted(weights)[0]
    save_file({k: v for k, v in weights.items() if k != key}, folder / file)
    assert_load_raises(ValueError, f"{file}: the weights do not fit .*1 missing .*{key}", folder)
    save_file(weights | {"surplus.weight": torch.zeros(1)}, folder / file)
    assert_load_raises(ValueError, f"{file}: the weights do not fit .*1 unexpected .*surplus.weight", folder)
    save_file(weights | {key: torch.zeros(3, 1)}, folder / file)
    shape = re.escape(str(tuple(weights[key].shape)))
    assert_load_raises(
        ValueError, rf"{file}: the weights .* do not fit .*expected {shape} for {key}, got \(3, 1\); load", folder
    )


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "config.json: expected JSON, got .*; copy or download it again"),
        ("[]", "config.json: expected a model config, got JSON of another type; copy or download it again"),
        ("{}", "config.json: expected model_type 'detris', got None"),
    ],
)
def test_damaged_config(saved, text, match):
    _, folder = saved
    (folder / "config.json").write_text(text)
    assert_load_raises(ValueError, match, folder)


def test_folder_of_another_model(backbones):
    match = "config.json: expected model_type 'detris', got 'dinov2_with_registers'"
    assert_load_raises(ValueError, match, backbones / "vision")


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_missing_backbone(saved, kind):
    model, folder = saved
    backbone = folder.parents[1] / "backbones" / kind
    (backbone / "model.safetensors").rename(backbone / "gone")
    match = f"The {kind} backbone .*{kind} cannot be loaded .*; pass a loaded one as {kind}_model"
    assert_load_raises(OSError, match, folder)
    shutil.rmtree(backbone)
    match = f"The {kind} backbone .*{kind} does not exist; pass .*, or correct {kind}_name_or_path in"
    assert_load_raises(FileNotFoundError, match, folder)
    setattr(model.config, f"{kind}_name_or_path", None)
    model.save_pretrained(folder)
    match = f"The checkpoint does not name its {kind} backbone.*; pass a loaded one as {kind}_model"
    assert_load_raises(ValueError, match, folder)


def test_backbone_with_missing_weights(saved):
    """transformers would initialize them randomly and only warn."""
    _, folder = saved
    file = folder.parents[1] / "backbones" / "vision" / "model.safetensors"
    weights = load_file(file)
    save_file({k: v for k, v in weights.items() if k != "layernorm.weight"}, file, metadata={"format": "pt"})
    match = r"vision backbone .* is missing 1 weights, such as layernorm.weight; .*; pass a loaded one as"
    assert_load_raises(ValueError, match, folder)
    file.write_bytes(file.read_bytes()[:500])
    assert_load_raises(OSError, "The vision backbone .* cannot be loaded", folder)


def test_text_encoder_without_pooler_weights_loads(tmp_path):
    """Checkpoints of XLM-R contain no pooler. It is not used, so its random weights do not matter."""
    text = text_encoder("xlm_roberta")
    text.save_pretrained(tmp_path / "text")
    file = tmp_path / "text" / "model.safetensors"
    weights = {k: v for k, v in load_file(file).items() if "pooler" not in k}
    save_file(weights, file, metadata={"format": "pt"})
    image_encoder().save_pretrained(tmp_path / "vision")
    vision = Dinov2WithRegistersModel.from_pretrained(tmp_path / "vision")
    model = DetrisForReferringSegmentation.from_backbones(
        vision, type(text).from_pretrained(tmp_path / "text"), tiny_config()
    )
    model.save_pretrained(tmp_path / "run")
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")
    batch = inputs(pad=1)
    assert torch.equal(model.eval()(**batch).logits, loaded(**batch).logits)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hidden_size": 64}, "hidden_size=32"),
        ({"num_hidden_layers": 4}, "num_hidden_layers=3"),
        ({"patch_size": 4}, "patch_size=8"),
    ],
)
def test_image_encoder_of_another_architecture(saved, changes, field):
    _, folder = saved
    got = next(iter(changes.values()))
    match = f"expected a vision encoder with {field}, as in training, got {got}; load the checkpoint over"
    assert_load_raises(ValueError, match, folder, vision_model=image_encoder(**changes))


def test_text_encoder_of_another_architecture(saved):
    _, folder = saved
    match = "expected a text encoder with hidden_size=48, as in training, got 64"
    assert_load_raises(ValueError, match, folder, text_model=text_encoder(hidden_size=64))
    match = "expected a text encoder with model_type=clip_text_model, as in training, got bert"
    assert_load_raises(ValueError, match, folder, text_model=text_encoder("bert"))


def test_head_of_another_width(saved):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_dim": 80}))
    match = r"head.safetensors: the weights of the head do not fit .* expected \(240,\) for .*, got \(120,\)"
    assert_load_raises(ValueError, match, folder)


def test_weights_are_plain_safetensors_files(saved):
    _, folder = saved
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    adapter = load_file(folder / "vision_adapter" / "adapter_model.safetensors")
    assert set(adapter) == set(get_peft_model_state_dict(saved[0].vision_model, save_embedding_layers=False))
