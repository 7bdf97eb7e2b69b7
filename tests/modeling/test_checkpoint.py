"""Adapter-only checkpoints: what is in them, what comes back, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, CLIPTextModelWithProjection, Dinov2WithRegistersModel

from detris_peft import DetrisConfig, DetrisForReferringSegmentation
from detris_peft.modeling import checkpoint
from tests.helpers.tiny_models import image_encoder, inputs, perturb, text_encoder, tiny_config


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> Path:
    """A folder with `vision/` and `text/`, as a user would have downloaded them."""
    folder = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(1)
    image_encoder().save_pretrained(folder / "vision")
    text_encoder().save_pretrained(folder / "text")
    return folder


def make(backbones: Path, **changes) -> DetrisForReferringSegmentation:
    vision = Dinov2WithRegistersModel.from_pretrained(backbones / "vision")
    text = CLIPTextModelWithProjection.from_pretrained(backbones / "text")
    model = DetrisForReferringSegmentation.from_backbones(vision, text, tiny_config(**changes))
    perturb(model)
    return model.eval()


def logits(model) -> torch.Tensor:
    batch = inputs()
    with torch.no_grad():
        return model(batch["pixel_values"], batch["input_ids"]).logits


@pytest.fixture
def saved(backbones, tmp_path):
    """A model, and the folder it was saved to beside a copy of its backbones."""
    shutil.copytree(backbones, tmp_path / "backbones")
    model = make(tmp_path / "backbones")
    model.save_pretrained(tmp_path / "runs" / "one")
    return model, tmp_path / "runs" / "one"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


# -- what is in it ----------------------------------------------------------------------------------------------------


def test_holds_what_is_trained_and_nothing_else(saved):
    """Keys of all files together: the trainable weights and the running statistics, as exact sets."""
    model, folder = saved
    assert set(contents(folder)) == {
        "README.md",
        "config.json",
        "head.safetensors",
        *(
            f"{a}/adapter_{f}"
            for a in ("vision_adapter", "text_adapter")
            for f in ("config.json", "model.safetensors")
        ),
    }
    held = {}
    for file, prefix in (
        ("head.safetensors", ""),
        ("vision_adapter/adapter_model.safetensors", "vision_model."),
        ("text_adapter/adapter_model.safetensors", "text_model."),
    ):
        held |= {prefix + k: v for k, v in load_file(folder / file).items()}

    def without_adapter_name(name: str) -> str:
        return name.replace("_branches.default.", "_branches.")

    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    statistics = {n: b for n, b in model.named_buffers() if n.rpartition(".")[2] in STATISTICS}
    expected = {without_adapter_name(n): v for n, v in (trainable | statistics).items()}
    assert set(held) == set(expected)
    for name, value in expected.items():
        assert torch.equal(held[name], value), name
    frozen = {without_adapter_name(n) for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert not frozen & set(held)
    assert set(checkpoint.trainable_state_dict(model)) == set(held)


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("without", [("vision_adapter",), ("text_adapter",), ("vision_adapter", "text_adapter")])
def test_without_an_adapter(backbones, tmp_path, without):
    model = make(backbones, **dict.fromkeys(without))
    model.save_pretrained(tmp_path / "run")
    assert not [name for name in without if (tmp_path / "run" / name).exists()]
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")
    assert torch.equal(logits(model), logits(loaded))


def test_names_no_path_of_this_machine(saved):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    assert config["vision_name_or_path"] == "../../backbones/vision"
    assert config["text_name_or_path"] == "../../backbones/text"
    for file in ("config.json", "README.md"):
        assert str(folder.parents[1]) not in (folder / file).read_text()


def test_others_can_read_the_files(saved):
    """Written aside in a private folder; the files themselves are as public as any."""
    _, folder = saved
    reference = folder.parent / "plain"
    reference.write_text("")
    modes = {file.stat().st_mode & 0o444 for file in folder.rglob("*") if file.is_file()}
    assert modes == {reference.stat().st_mode & 0o444}


# -- what comes back --------------------------------------------------------------------------------------------------


def test_loads_over_the_backbones_it_names(saved):
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


def test_loads_in_a_fresh_process(saved, tmp_path):
    """Bit-equal logits, with other random numbers about."""
    model, folder = saved
    batch = inputs()
    save_file({k: batch[k] for k in ("pixel_values", "input_ids")}, tmp_path / "in.safetensors")
    script = """
import sys, torch
from safetensors.torch import load_file, save_file
from detris_peft import DetrisForReferringSegmentation
torch.manual_seed(12345)
torch.set_num_threads(int(sys.argv[4]))
model = DetrisForReferringSegmentation.from_pretrained(sys.argv[1])
with torch.no_grad():
    save_file({"logits": model(**load_file(sys.argv[2])).logits.contiguous()}, sys.argv[3])
"""
    out, threads = tmp_path / "out.safetensors", str(torch.get_num_threads())
    arguments = [str(folder), str(tmp_path / "in.safetensors"), str(out), threads]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, cwd=tmp_path)
    assert torch.equal(load_file(out)["logits"], logits(model))


def test_nothing_is_random_after_loading(saved):
    """Two loads under different seeds agree in every weight and statistic."""
    _, folder = saved
    torch.manual_seed(1)
    one = DetrisForReferringSegmentation.from_pretrained(folder)
    torch.manual_seed(2)
    other = DetrisForReferringSegmentation.from_pretrained(folder)
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_adapters_alone_with_peft(saved):
    """`PeftModel.from_pretrained` on the same folder: the model's own encoders, to the bit."""
    model, folder = saved
    vision = Dinov2WithRegistersModel.from_pretrained(folder.parents[1] / "backbones" / "vision")
    alone = PeftModel.from_pretrained(vision, folder, subfolder="vision_adapter", is_trainable=True).eval()
    text = CLIPTextModelWithProjection.from_pretrained(folder.parents[1] / "backbones" / "text")
    words = PeftModel.from_pretrained(text, folder, subfolder="text_adapter", is_trainable=True).eval()
    batch = inputs()
    with torch.no_grad():
        expected, _ = model.encode_text(batch["input_ids"])
        taps = model.encode_image(batch["pixel_values"], expected)
        states = words(input_ids=batch["input_ids"]).last_hidden_state
        out = alone(batch["pixel_values"], text_states=states).last_hidden_state
        frozen = alone.requires_grad_(False)(batch["pixel_values"], text_states=states).last_hidden_state
    assert torch.equal(states, expected)
    patches = taps[-1].flatten(2).transpose(1, 2)
    assert torch.equal(out[:, -36:], patches)
    # PyTorch sums in another order beside frozen weights.
    torch.testing.assert_close(frozen[:, -36:], patches, atol=1e-5, rtol=0)


def test_a_run_moves_with_its_backbones(saved, tmp_path):
    model, _ = saved
    before = logits(model)
    (tmp_path / "elsewhere").mkdir()
    for name in ("runs", "backbones"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "elsewhere" / "runs" / "one")
    assert torch.equal(logits(loaded), before)
    # Saved again elsewhere, it still finds them.
    loaded.save_pretrained(tmp_path / "other" / "deep" / "run")
    again = DetrisForReferringSegmentation.from_pretrained(tmp_path / "other" / "deep" / "run")
    assert torch.equal(logits(again), before)


def test_backbones_within_the_checkpoint(backbones, tmp_path):
    shutil.copytree(backbones, tmp_path / "run" / "backbones")
    model = make(tmp_path / "run" / "backbones")
    model.save_pretrained(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert torch.equal(logits(DetrisForReferringSegmentation.from_pretrained(tmp_path / "moved")), logits(model))


def test_passed_backbones_stand_in_for_named_ones(saved):
    model, folder = saved
    shutil.move(folder.parents[1] / "backbones", folder.parents[1] / "kept")
    vision = Dinov2WithRegistersModel.from_pretrained(folder.parents[1] / "kept" / "vision")
    text = CLIPTextModelWithProjection.from_pretrained(folder.parents[1] / "kept" / "text")
    loaded = DetrisForReferringSegmentation.from_pretrained(folder, vision_model=vision, text_model=text)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.vision_name_or_path == str(folder.parents[1] / "kept" / "vision")


def test_keywords_reach_the_backbones(saved):
    _, folder = saved
    loaded = DetrisForReferringSegmentation.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager", device_map="cpu"
    )
    frozen = {p.dtype for p in loaded.parameters() if not p.requires_grad}
    trained = {p.dtype for p in loaded.parameters() if p.requires_grad}
    assert (frozen, trained) == ({torch.bfloat16}, {torch.float32})
    assert loaded.vision_model.config._attn_implementation == "eager"
    with pytest.raises(TypeError, match="from_pretrained does not know load_in_8bit"):
        DetrisForReferringSegmentation.from_pretrained(folder, load_in_8bit=True)


def test_revisions_are_saved_and_asked_for(backbones, tmp_path, monkeypatch):
    """A pinned revision goes to the Hub with the name it was set for, and with no other."""
    model = make(backbones)
    model.config.vision_name_or_path, model.config.vision_revision = "user/dino", "v1"
    model.save_pretrained(tmp_path / "run")
    read, asked = Dinov2WithRegistersModel.from_pretrained, []

    def from_hub(name, **keywords):
        asked.append((name, keywords.pop("revision", None)))
        return read(backbones / "vision", **keywords)

    monkeypatch.setattr(Dinov2WithRegistersModel, "from_pretrained", from_hub)
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")
    assert asked == [("user/dino", "v1")]
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.vision_name_or_path == str(backbones / "vision")
    assert loaded.config.vision_revision is None


def test_positions_are_saved_with_it(backbones, tmp_path):
    """The position table's resampling is part of what was trained."""
    model = make(backbones, position_interpolation="official")
    model.save_pretrained(tmp_path / "run")
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")
    assert torch.equal(logits(loaded), logits(model))
    plain = DetrisConfig.from_pretrained(tmp_path / "run")
    plain.position_interpolation = "backbone"
    other = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run", config=plain)
    assert not torch.allclose(logits(other), logits(model), atol=1e-4)


# -- saving -----------------------------------------------------------------------------------------------------------


def test_saved_over_an_earlier_checkpoint(saved):
    """Everything is replaced, what an earlier model had and this one has not is gone, other files stay."""
    model, folder = saved
    (folder / "metrics.json").write_text("{}")
    other = make(folder.parents[1] / "backbones", text_adapter=None)
    other.save_pretrained(folder)
    assert not (folder / "text_adapter").exists()
    assert (folder / "metrics.json").exists()
    assert torch.equal(logits(DetrisForReferringSegmentation.from_pretrained(folder)), logits(other))
    model.save_pretrained(folder)
    assert torch.equal(logits(DetrisForReferringSegmentation.from_pretrained(folder)), logits(model))


@pytest.mark.parametrize("breaks", ["save_file", "model_card", "_portable"])
def test_a_failing_save_leaves_the_earlier_checkpoint(saved, monkeypatch, breaks):
    model, folder = saved
    before = contents(folder.parent)
    perturb(model)

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, breaks, fail)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(folder)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(folder.parent / "new")
    assert contents(folder.parent) == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_other_processes_write_nothing(saved, tmp_path):
    saved[0].save_pretrained(tmp_path / "second", is_main_process=False)
    assert not (tmp_path / "second").exists()


def test_gathered_weights_are_saved_in_place_of_the_modules(saved, tmp_path):
    model, _ = saved
    gathered = {k: v + 1 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.save_pretrained(tmp_path / "gathered", state_dict=gathered)
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "gathered")
    for name, value in loaded.state_dict().items():
        trained = name in gathered and ("_branches." in name or not name.startswith(("vision_model", "text_model")))
        assert torch.equal(value, gathered[name] if trained else model.state_dict()[name]), name
    del gathered["neck.sentence_proj.weight"]
    with pytest.raises(ValueError, match=r"state_dict lacks 1 weights .* \['neck.sentence_proj.weight'\]"):
        model.save_pretrained(tmp_path / "lacking", state_dict=gathered)
    assert not (tmp_path / "lacking").exists()


def test_saving_to_a_file_is_refused(saved, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: give a folder to save to"):
        saved[0].save_pretrained(tmp_path / "file")


def test_saving_changes_nothing_in_the_model(saved, tmp_path):
    model, _ = saved
    before = copy.deepcopy(model.config.to_dict()), logits(model)
    model.save_pretrained(tmp_path / "again")
    assert model.config.to_dict() == before[0]
    assert torch.equal(logits(model), before[1])
    assert not model.vision_model.peft_config["default"].inference_mode


# -- what is refused --------------------------------------------------------------------------------------------------


def refused(error, match, folder, **kwargs):
    with pytest.raises(error, match=match) as raised:
        DetrisForReferringSegmentation.from_pretrained(folder, **kwargs)
    assert "\n" not in str(raised.value)


def test_missing_folder(tmp_path):
    refused(
        FileNotFoundError, "There is no checkpoint folder .*nowhere: give a folder or a Hub name", tmp_path / "nowhere"
    )
    refused(FileNotFoundError, r"There is no checkpoint folder \./nowhere", "./nowhere")
    refused(FileNotFoundError, "There is no folder nobody/nothing, nor can it be had from the Hub", "nobody/nothing")
    refused(FileNotFoundError, "nor can it be had from the Hub", "not a name")


@pytest.mark.parametrize(
    "file", ["config.json", "head.safetensors", "vision_adapter/adapter_model.safetensors", "text_adapter"]
)
def test_missing_file(saved, file):
    _, folder = saved
    (shutil.rmtree if (folder / file).is_dir() else Path.unlink)(folder / file)
    refused(FileNotFoundError, f"{file}.*: (give a folder|copy or download it whole)", folder)


def test_missing_subfolder(saved):
    refused(FileNotFoundError, "one/best holds no config.json", saved[1], subfolder="best")


def test_subfolder(saved):
    model, folder = saved
    loaded = DetrisForReferringSegmentation.from_pretrained(folder.parent, subfolder="one")
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(
    "file", ["head.safetensors", "vision_adapter/adapter_model.safetensors", "text_adapter/adapter_model.safetensors"]
)
@pytest.mark.parametrize("left", [0, 100, -10])
def test_truncated_file(saved, file, left):
    _, folder = saved
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[:left])
    refused(ValueError, f"{file} is damaged or not whole .*: copy or download it again", folder)


@pytest.mark.parametrize(
    "file", ["head.safetensors", "vision_adapter/adapter_model.safetensors", "text_adapter/adapter_model.safetensors"]
)
def test_missing_left_over_and_misshapen_weights(saved, file):
    _, folder = saved
    whole = load_file(folder / file)
    key = sorted(whole)[0]
    save_file({k: v for k, v in whole.items() if k != key}, folder / file)
    refused(ValueError, f"{file} does not fit .*1 weights are missing .*{key}", folder)
    save_file(whole | {"surplus.weight": torch.zeros(1)}, folder / file)
    refused(ValueError, f"{file} does not fit .*1 are left over .*surplus.weight", folder)
    save_file(whole | {key: torch.zeros(3, 1)}, folder / file)
    refused(ValueError, rf"{file} does not fit .*{key} is \(3, 1\) in the file, needed is", folder)


@pytest.mark.parametrize(
    ("text", "match"), [("{", "is not a config"), ("[]", "is not a config"), ("{}", "None model")]
)
def test_damaged_config(saved, text, match):
    _, folder = saved
    (folder / "config.json").write_text(text)
    refused(ValueError, match, folder)


def test_folder_of_another_model(backbones):
    refused(
        ValueError, "config.json is of a 'dinov2_with_registers' model, needed is .*'detris'", backbones / "vision"
    )


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_missing_backbone(saved, kind):
    model, folder = saved
    backbone = folder.parents[1] / "backbones" / kind
    (backbone / "model.safetensors").rename(backbone / "gone")
    refused(OSError, f"The {kind} backbone .*{kind} cannot be loaded .*pass a loaded one as {kind}_model", folder)
    shutil.rmtree(backbone)
    refused(FileNotFoundError, f"The {kind} backbone is gone from .*: pass .* or mend {kind}_name_or_path in", folder)
    setattr(model.config, f"{kind}_name_or_path", None)
    model.save_pretrained(folder)
    refused(ValueError, f"The checkpoint does not name its {kind} backbone.*pass a loaded one as {kind}_model", folder)


def test_backbone_with_a_gap(saved):
    """transformers would fill it with random numbers and a warning."""
    _, folder = saved
    file = folder.parents[1] / "backbones" / "vision" / "model.safetensors"
    weights = load_file(file)
    save_file({k: v for k, v in weights.items() if k != "layernorm.weight"}, file, metadata={"format": "pt"})
    refused(ValueError, r"vision backbone .* lacks 1 weights, among them \['layernorm.weight'\]", folder)
    file.write_bytes(file.read_bytes()[:500])
    refused(OSError, "The vision backbone .* cannot be loaded", folder)


def test_text_encoder_without_a_pooler_is_whole(tmp_path):
    """Checkpoints of XLM-R hold no pooler: it is not used, and its random numbers do no harm."""
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
def test_other_image_encoder(saved, changes, field):
    _, folder = saved
    match = f"trained over a vision encoder with {field}, this one has {next(iter(changes.values()))}: load it over"
    refused(ValueError, match, folder, vision_model=image_encoder(**changes))


def test_other_text_encoder(saved):
    _, folder = saved
    refused(
        ValueError,
        "text encoder with hidden_size=48, this one has 64",
        folder,
        text_model=text_encoder(hidden_size=64),
    )
    refused(ValueError, "with model_type=clip_text_model, this one has bert", folder, text_model=text_encoder("bert"))


def test_head_of_another_shape(saved):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_dim": 80}))
    refused(ValueError, r"head.safetensors does not fit config.json .* in the file, needed is", folder)


def test_files_are_plain_safetensors(saved):
    _, folder = saved
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    adapter = load_file(folder / "vision_adapter" / "adapter_model.safetensors")
    assert set(adapter) == set(get_peft_model_state_dict(saved[0].vision_model, save_embedding_layers=False))
