"""The `detris` command, and the backbones' original files."""

from __future__ import annotations

import copy
import zipfile

import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, Dinov2WithRegistersConfig
from transformers import Dinov2WithRegistersModel as Dinov2

from detris_peft import DetrisConfig, DetrisForReferringSegmentation, presets
from detris_peft.cli import main
from detris_peft.conversion.key_mapping import backbone_layout
from detris_peft.conversion.official_checkpoint import load_official_checkpoint
from detris_peft.conversion.original_backbones import load_original_clip_text, load_original_dinov2
from detris_peft.data.refshapes import write_refshapes
from tests.helpers.reference import FIXTURES, reference_config

CHECKPOINT = FIXTURES / "tiny_checkpoint.pth"


def original(model, kind: str) -> dict[str, torch.Tensor]:
    """The weights under the keys of the original file: the inverse of reading it."""
    config = copy.deepcopy(model.config)  # DetrisConfig changes what it is given
    fields = {"vision_config": config} if kind == "vision" else {"text_config": config, "hidden_dim": 64}
    rows = backbone_layout(DetrisConfig(**fields, vision_adapter=None, decoder_heads=1), kind)
    state = model.state_dict()
    return {row.official: row.join(state) if row.ours else torch.tensor(4.6) for row in rows}


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    config = Dinov2WithRegistersConfig(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=42, patch_size=14, mlp_ratio=2
    )
    model = Dinov2(config).eval()
    path = tmp_path_factory.mktemp("dino") / "dino.pth"
    torch.save(original(model, "vision"), path)
    return model, path


@pytest.fixture(scope="module")
def clip():
    config = CLIPTextConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=1,
        vocab_size=50,
        projection_dim=24,
        max_position_embeddings=11,
        bos_token_id=48,
        eos_token_id=49,
        pad_token_id=0,
    )
    model = CLIPTextModelWithProjection(config).eval()
    return model, {**original(model, "text"), "visual.proj": torch.zeros(3), "input_resolution": torch.tensor(224)}


def scripted(weights, path):
    """A TorchScript archive whose modules carry these weights."""

    class Holder(nn.Module):
        def forward(self, x):
            return x

    root = Holder()
    for key, value in weights.items():
        *parents, leaf = key.split(".")
        module = root
        for name in parents:
            if name not in dict(module.named_children()):
                module.add_module(name, Holder())
            module = module.get_submodule(name)
        module.register_buffer(leaf, value)
    torch.jit.save(torch.jit.trace(root, torch.zeros(1)), path)


def test_original_dinov2(dinov2):
    model, path = dinov2
    read, pixels = load_original_dinov2(path), torch.randn(1, 3, 42, 56)
    with torch.no_grad():
        assert torch.equal(read(pixels).last_hidden_state, model(pixels).last_hidden_state)
    assert not read.training


@pytest.mark.parametrize("form", ["state_dict", "archive"])
def test_original_clip(clip, form, tmp_path, monkeypatch):
    model, weights = clip
    path = tmp_path / "clip.pt"
    torch.save(weights, path) if form == "state_dict" else scripted(weights, path)
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("the archive's code was loaded"))
    read, input_ids = load_original_clip_text(path), torch.tensor([[48, 3, 7, 49, 0]])
    with torch.no_grad():
        assert torch.equal(read(input_ids).text_embeds, model(input_ids).text_embeds)
        assert torch.equal(read(input_ids).last_hidden_state, model(input_ids).last_hidden_state)


def test_one_file_given_as_the_other_is_named(dinov2, clip, tmp_path):
    torch.save(clip[1], tmp_path / "clip.pt")
    scripted(clip[1], tmp_path / "archive.pt")
    with pytest.raises(ValueError, match=r"is a DINO backbone: needed is a CLIP"):
        load_original_clip_text(dinov2[1])
    with pytest.raises(ValueError, match=r"is a CLIP: needed is DINOv2 with registers"):
        load_original_dinov2(tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=r"is a TorchScript archive, as OpenAI publishes CLIP, needed is DINOv2"):
        load_original_dinov2(tmp_path / "archive.pt")
    with pytest.raises(ValueError, match=r"is a training checkpoint: needed is DINOv2"):
        load_original_dinov2(CHECKPOINT)


def test_code_in_an_archive_is_refused(clip, tmp_path):
    """A global other than tensors' in the archive's pickle is an error and is not called."""
    scripted(clip[1], tmp_path / "archive.pt")
    with zipfile.ZipFile(tmp_path / "archive.pt") as old, zipfile.ZipFile(tmp_path / "evil.pt", "w") as new:
        for name in old.namelist():
            evil = f"cos\nmkdir\n(V{tmp_path}/ran\ntR.".encode()
            new.writestr(name, evil if name.endswith("/data.pkl") else old.read(name))
    with pytest.raises(ValueError, match=r"asks for (os|posix)\.mkdir"):
        load_original_clip_text(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def plain(tmp_path):
    """The reference checkpoint's config as a file, and its backbones as Hugging Face folders."""
    model = load_official_checkpoint(CHECKPOINT, reference_config())
    for kind in ("vision", "text"):
        getattr(model, f"{kind}_model").unload().save_pretrained(tmp_path / kind)
    (tmp_path / "config.json").write_text(reference_config().to_json_string(use_diff=False))
    return [
        str(CHECKPOINT),
        *("--config", str(tmp_path / "config.json"), "--output", str(tmp_path / "run")),
        *("--vision_model", str(tmp_path / "vision"), "--text_model", str(tmp_path / "text")),
    ]


def fails(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert str(ended.value.code).startswith("error: ")
    assert "\n" not in str(ended.value.code)
    return str(ended.value.code)


def test_convert_there_and_back(plain, tmp_path, capsys):
    main(["convert", *plain, "--verify-backbones"])
    printed = capsys.readouterr().out
    assert "vision backbone: " in printed
    assert "max abs difference" not in printed
    assert "left out the processor's files" in printed  # these backbones have no tokenizer
    model = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")
    assert model.config.position_interpolation == "official"
    back = tmp_path / "back.pth"
    main(["convert", str(tmp_path / "run"), "--to-official", "--output", str(back)])
    expected, got = (torch.load(file, weights_only=True)["state_dict"] for file in (CHECKPOINT, back))
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], value) for key, value in expected.items())
    assert "give --overwrite" in fails(capsys, "convert", tmp_path / "run", "--to-official", "--output", back)
    main(["convert", str(tmp_path / "run"), "--to-official", "--output", str(back), "--overwrite"])


def test_verify_names_the_weight_that_differs(plain, tmp_path, capsys):
    model = Dinov2.from_pretrained(tmp_path / "vision")
    model.layernorm.bias.data[0] += 0.25
    model.save_pretrained(tmp_path / "vision")
    assert "1 frozen weights" in fails(capsys, "convert", *plain, "--verify-backbones")
    assert "vision layernorm.bias: max abs difference 0.25\n" in capsys.readouterr().out


def test_train_over_original_files(tmp_path, capsys, dinov2):
    """The files become Hugging Face folders that the checkpoint names; a file of another size is refused."""
    write_refshapes(tmp_path, train=4, val=2, test=1, image_size=64)
    config = presets.get("tiny")
    config.vision_config.num_attention_heads = config.text_config.num_attention_heads = 1  # 64 wide, as they publish
    model = DetrisForReferringSegmentation(config)
    for kind in ("vision", "text"):
        torch.save(original(getattr(model, f"{kind}_model").unload(), kind), tmp_path / f"{kind}.pth")
    common = ["train", "--preset", "tiny", "--dataset", "refshapes", "--data_root", str(tmp_path), "--epochs", "1"]
    common += ["--num_workers", "0", "--output_dir", str(tmp_path / "run"), "--clip", str(tmp_path / "text.pth")]
    main([*common, "--dino", str(tmp_path / "vision.pth")])
    read = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run" / "last")
    assert read.config.vision_name_or_path.endswith("backbones/dino")
    table = read.vision_model.unload().state_dict()["embeddings.position_embeddings"]
    assert torch.equal(table, torch.load(tmp_path / "vision.pth", weights_only=True)["pos_embed"])
    assert "has hidden_size=128, needed is 64" in fails(capsys, *common, "--dino", dinov2[1])
    both = [*common, "--dino", "x", "--vision_model", "y"]
    assert "--vision_model and --dino are both given" in fails(capsys, *both)


def test_bad_input_is_one_line(tmp_path, capsys, dinov2):
    (tmp_path / "cut.pth").write_bytes(CHECKPOINT.read_bytes()[:5000])
    (tmp_path / "text.json").write_text("no json")
    common = ["--output", tmp_path / "run", "--preset", "detris-b"]
    for arguments, says in (
        ([tmp_path / "none.pth", *common], "There is no checkpoint"),
        ([tmp_path / "cut.pth", *common], "is truncated"),
        ([dinov2[1], *common], "is a DINO backbone alone"),
        ([CHECKPOINT, *common], "No preset fits it"),
        ([CHECKPOINT, "--output", tmp_path / "run"], "--preset or as --config"),
        ([CHECKPOINT, "--output", tmp_path / "run", "--config", tmp_path / "text.json"], "is not a config"),
        ([tmp_path, "--to-official", "--output", tmp_path / "x.pth"], "holds no config.json"),
    ):
        assert says in fails(capsys, "convert", *arguments)
    assert not (tmp_path / "run").exists()


def test_unknown_command_lists_those_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["conver"])
    printed = capsys.readouterr().err
    assert all(name in printed for name in ("train", "evaluate", "predict", "convert"))
