"""What `save_pretrained` refuses to lose, to replace or to write, and which adapter it saves."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig, LoraModel, PeftModel, PeftType, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, Dinov2WithRegistersModel

from detris_peft import DenseAlignerConfig, DetrisForReferringSegmentation
from detris_peft.adapters import DenseAlignerModel, register
from detris_peft.modeling.checkpoint import loading, saving
from detris_peft.modeling.model_card import write_model_card
from tests.helpers.checkpoints import contents, logits, make
from tests.helpers.kills import run_killed
from tests.helpers.tiny_models import perturb, tiny_config

ALIGNER = {"dim": 16, "layers_to_transform": [0, 2], "text_dim": 48, "cross_attention_dim": 16}


@pytest.fixture
def model(backbones):
    return make(backbones)


def aligner(**changes) -> DenseAlignerConfig:
    return DenseAlignerConfig(**{**ALIGNER, "cross_attention_heads": 2, **changes})


def assert_refused(model, folder, match, **kwargs):
    """Saving raises a ValueError of one line and writes nothing."""
    before = contents(folder.parent)
    with pytest.raises(ValueError, match=match) as raised:
        model.save_pretrained(folder, **kwargs)
    assert "\n" not in str(raised.value)
    assert contents(folder.parent) == before


# -- trained weights that a checkpoint would not contain --------------------------------------------------------------


def add_lora(model):
    config = LoraConfig(r=2, target_modules=["q_proj"])
    model.vision_model = get_peft_model(model.vision_model.get_base_model(), config, adapter_name="lora")


def unfreeze_backbone(model):
    model.text_model.get_base_model().text_model.final_layer_norm.weight.requires_grad_(True)


def add_parameter(model):
    model.temperature = nn.Parameter(torch.ones(1))


def add_parameter_to_the_head(model):
    model.neck.temperature = nn.Parameter(torch.ones(1))


def add_lora_to_the_head(model):
    model.projector = get_peft_model(model.projector, LoraConfig(r=2, target_modules=["sentence_proj"]))


def add_module_with_statistics(model):
    model.extra = nn.BatchNorm2d(3, affine=False)


def add_statistics_to_a_backbone(model):
    model.vision_model.get_base_model().embeddings.norm = nn.BatchNorm1d(3, affine=False)


def train_statistics_of_a_backbone(model):
    model.train()
    norm = model.vision_model.get_base_model().embeddings.norm
    norm.train()
    norm(torch.randn(8, 3))
    model.eval()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (unfreeze_backbone, "final_layer_norm.weight"),
        (add_parameter, "temperature"),
        (add_parameter_to_the_head, "neck.temperature"),
        (add_lora_to_the_head, "projector.*lora_A"),
        (add_module_with_statistics, "extra.running_mean"),
        (add_statistics_to_a_backbone, "embeddings.norm.running_mean"),
    ],
)
def test_trained_weights_that_would_be_lost_are_refused(model, tmp_path, change, name):
    change(model)
    assert_refused(model, tmp_path / "run", rf"would be lost \(.*{name}.*\); freeze them with requires_grad_\(False\)")


def test_lora_that_replaces_the_adapter_is_saved(backbones, tmp_path):
    model = make(backbones, vision_adapter=None)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model.vision_model = get_peft_model(model.vision_model, config)
    model.save_pretrained(tmp_path / "run")
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")
    assert loaded.config.vision_adapter.peft_type == "LORA"
    assert torch.equal(logits(loaded), logits(model))


def test_lora_in_addition_to_the_adapter_is_refused(backbones, tmp_path):
    """A checkpoint has one adapter per encoder: the other would be lost."""
    model = make(backbones)
    add_lora(model)
    assert_refused(model, tmp_path / "run", r"expected one active adapter to save, got .*'lora'")
    model.requires_grad_(False)
    assert_refused(model, tmp_path / "run", r"expected one active adapter to save, got .*'lora'")


def test_a_tuner_that_is_not_registered_in_the_encoder_is_refused(model, tmp_path):
    """Injected without `peft_config`: no function of peft would save it."""
    encoder = model.vision_model.get_base_model()
    encoder.encoder.layer[0].attention = LoraModel(
        encoder.encoder.layer[0].attention, LoraConfig(r=2, target_modules=["q_proj"]), "lora"
    )
    model.requires_grad_(False)
    assert_refused(model, tmp_path / "run", r"would be lost \(.*lora_A.lora.weight")


def test_statistics_of_a_backbone_that_training_changed_are_refused(backbones, tmp_path):
    """A backbone with BatchNorm may be saved as long as its statistics are those that it was loaded with."""
    vision = Dinov2WithRegistersModel.from_pretrained(backbones / "vision")
    vision.embeddings.norm = nn.BatchNorm1d(3, affine=False)
    text = make(backbones).text_model.unload()
    model = DetrisForReferringSegmentation.from_backbones(vision, text, tiny_config())
    model.train()
    model.save_pretrained(tmp_path / "before")
    train_statistics_of_a_backbone(model)
    assert_refused(model, tmp_path / "run", r"embeddings\.norm\.running_mean")


def test_frozen_additions_are_no_error(model, tmp_path):
    """What is frozen and has no statistics is the user's own."""
    model.extra = nn.Linear(2, 2).requires_grad_(False)
    model.neck.extra = nn.Linear(2, 2).requires_grad_(False)
    model.save_pretrained(tmp_path / "run")
    assert torch.equal(logits(DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")), logits(model))


# -- adapters ---------------------------------------------------------------------------------------------------------


def stored(folder):
    return load_file(folder / "vision_adapter" / "adapter_model.safetensors")


@pytest.fixture
def two_adapters(model):
    """A model with the adapters "default" and "other" in the image encoder, of different sizes; "other" is active."""
    model.vision_model.add_adapter("other", aligner(dim=32, layers_to_transform=[1]))
    model.vision_model.set_adapter("other")
    perturb(model)
    return model.eval()


def test_the_active_adapter_is_saved(two_adapters, tmp_path, caplog):
    logging.getLogger("transformers").propagate = True
    with caplog.at_level("WARNING"):
        two_adapters.save_pretrained(tmp_path / "run")
    assert "saving the adapter 'other' of the vision encoder; not saved: 'default'" in caplog.text
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")
    assert loaded.config.vision_adapter.dim == 32
    assert torch.equal(logits(loaded), logits(two_adapters))


def test_an_adapter_can_be_selected(two_adapters, tmp_path):
    two_adapters.save_pretrained(tmp_path / "run", adapter_name="default")
    two_adapters.vision_model.set_adapter("default")
    expected = logits(two_adapters)
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")
    assert loaded.config.vision_adapter.to_dict() == tiny_config().vision_adapter.to_dict()
    assert torch.equal(logits(loaded), expected)
    assert_refused(
        two_adapters, tmp_path / "no", r"adapter_name='x': .* one of \['default', 'other'\]", adapter_name="x"
    )


@pytest.mark.parametrize("method", ["save_pretrained", "push_to_hub"])
def test_unknown_keyword_arguments_are_refused(two_adapters, tmp_path, method):
    """`PeftModel.save_pretrained` has `selected_adapters`; ignoring it would save another adapter."""
    with pytest.raises(TypeError, match=rf"{method} got unexpected .*: selected_adapters; .*adapter_name="):
        getattr(two_adapters, method)(str(tmp_path / "run"), selected_adapters=["default"])
    assert not (tmp_path / "run").exists()
    two_adapters.save_pretrained(tmp_path / "run", safe_serialization=True, max_shard_size="5GB", variant=None)


def test_the_default_adapter_may_be_deleted(two_adapters, tmp_path):
    two_adapters.vision_model.delete_adapter("default")
    two_adapters.save_pretrained(tmp_path / "run")
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")
    assert torch.equal(logits(loaded), logits(two_adapters))


def test_several_active_adapters_are_refused(two_adapters, tmp_path):
    two_adapters.vision_model.base_model.set_adapter(["default", "other"])
    match = r"expected one active adapter to save, got \['default', 'other'\] .*; pass adapter_name="
    assert_refused(two_adapters, tmp_path / "run", match)


def test_a_removed_adapter_must_be_removed_from_the_config(model, tmp_path):
    model.vision_model = model.vision_model.unload()
    assert_refused(model, tmp_path / "run", "vision_model: expected the adapter .*; set config.vision_adapter = None")


@pytest.mark.parametrize("name", ["mode", "lay", "0x", "branch", "vision_model", "running"])
def test_names_of_other_adapters_do_not_change_a_file(model, tmp_path, name):
    model.save_pretrained(tmp_path / "one")
    model.vision_model.add_adapter(name, aligner())
    model.save_pretrained(tmp_path / "two")
    one, two = stored(tmp_path / "one"), stored(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


@dataclass
class ScaledAlignerConfig(DenseAlignerConfig):
    """A type of adapter with a field of its own."""

    temperature: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType["SCALED_ALIGNER"]


def test_a_subclass_of_an_adapter_keeps_its_class(backbones, tmp_path):
    register("scaled_aligner", ScaledAlignerConfig, DenseAlignerModel)
    model = make(backbones, vision_adapter=ScaledAlignerConfig(**ALIGNER, cross_attention_heads=2, temperature=0.5))
    model.save_pretrained(tmp_path / "run")
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")
    assert type(loaded.config.vision_adapter) is ScaledAlignerConfig
    assert loaded.config.vision_adapter.temperature == 0.5
    assert torch.equal(logits(loaded), logits(model))


def test_adapters_do_not_name_local_folders(saved):
    """peft could not find them relative to the checkpoint, and an absolute path is wrong on other machines."""
    _, folder = saved
    for name in ("vision_adapter", "text_adapter"):
        content = (folder / name / "adapter_config.json").read_text()
        assert json.loads(content)["base_model_name_or_path"] is None
        assert str(folder.parents[1]) not in content
    vision = Dinov2WithRegistersModel.from_pretrained(folder.parents[1] / "backbones" / "vision")
    adapted = PeftModel.from_pretrained(vision, folder / "vision_adapter")
    assert any(
        torch.equal(weight, stored(folder)["base_model.model.encoder.layer.0.mlp.dense_aligner_branches.down.weight"])
        for weight in adapted.state_dict().values()
    )


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(model, tmp_path, value):
    with torch.no_grad():
        model.neck.sentence_proj.weight[0, 0] = value
    assert_refused(model, tmp_path / "run", "NaN or infinity in neck.sentence_proj.weight: the training diverged; ")


def test_weights_without_data_are_not_saved(model, tmp_path):
    match = "got .*meta device, which has no data; load or move the weights first"
    assert_refused(model.to("meta"), tmp_path / "run", match)


def test_a_full_disk_is_one_line(model, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(saving, "save_file", fail)
    with pytest.raises(OSError, match=r"cannot be written \(I/O error: No space left .*\); free disk space"):
        model.save_pretrained(tmp_path / "run")
    assert not list(tmp_path.iterdir())


# -- files of others --------------------------------------------------------------------------------------------------


def test_a_card_that_it_did_not_write_is_kept(saved, tmp_path):
    model, folder = saved
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("# My project\n")
    model.save_pretrained(tmp_path / "project")
    model.save_pretrained(tmp_path / "project")
    assert (tmp_path / "project" / "README.md").read_text() == "# My project\n"
    assert torch.equal(logits(DetrisForReferringSegmentation.from_pretrained(tmp_path / "project")), logits(model))
    # Its own is replaced, unless it was edited.
    write_model_card(folder)
    model.config.vision_name_or_path = "user/other"
    model.save_pretrained(folder)
    assert "user/other" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("# Edited\n")
    model.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "# Edited\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vision_adapter/adapter_model.safetensors", "another adapter"),
        ("config.json", '{"model_type": "bert"}'),
        ("manifest.json", '{"name": "web app"}'),
        ("head.safetensors", "another head"),
    ],
)
@pytest.mark.parametrize("with_adapter", [True, False])
def test_files_of_others_are_not_replaced(backbones, tmp_path, name, content, with_adapter):
    model = make(backbones, **({} if with_adapter else {"vision_adapter": None}))
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert_refused(model, tmp_path / "run", f"got one with another {name}; choose another folder")


def test_folders_of_others_are_kept(saved):
    """Only files that it wrote are removed with an adapter."""
    _, folder = saved
    (folder / "text_adapter" / "notes.txt").write_text("mine")
    other = make(folder.parents[1] / "backbones", text_adapter=None)
    other.save_pretrained(folder)
    assert [p.name for p in (folder / "text_adapter").iterdir()] == ["notes.txt"]
    assert torch.equal(logits(DetrisForReferringSegmentation.from_pretrained(folder)), logits(other))


def test_only_folders_of_its_own_are_marked(saved, tmp_path):
    """`--overwrite` of the commands removes a marked folder completely."""
    model, folder = saved
    assert (folder / ".detris_peft").read_text() == "checkpoint\n"
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "code.py").write_text("")
    model.save_pretrained(tmp_path / "project")
    assert not (tmp_path / "project" / ".detris_peft").exists()


def test_a_checkpoint_of_an_earlier_version_is_replaced(saved):
    """It has neither a manifest nor a marker."""
    model, folder = saved
    for name in ("manifest.json", ".detris_peft"):
        (folder / name).unlink()
    perturb(model)
    model.save_pretrained(folder)
    assert torch.equal(logits(DetrisForReferringSegmentation.from_pretrained(folder)), logits(model))


# -- interrupted saves ------------------------------------------------------------------------------------------------


def test_an_interrupted_save_is_completed_on_load(saved):
    """Killed after the first file has moved to its place; `AutoModel` reads the config before our code runs."""
    model, folder = saved
    before = logits(model)
    for load in (DetrisForReferringSegmentation.from_pretrained, AutoModel.from_pretrained):
        perturb(model)
        model.config.mask_threshold -= 0.01
        after = logits(model)
        assert run_killed(lambda: model.save_pretrained(folder), at=3, operations=("rename", "replace"))
        assert (folder / ".detris_update").is_dir()
        loaded = load(folder)
        assert torch.equal(logits(loaded), after)
        assert not torch.equal(after, before)
        assert loaded.config.mask_threshold == model.config.mask_threshold
        assert not [path for path in folder.iterdir() if path.name.startswith(".detris_update")]


def test_files_of_two_checkpoints_are_refused(saved):
    model, folder = saved
    perturb(model)
    model.save_pretrained(folder.parent / "two")
    name = "vision_adapter/adapter_model.safetensors"
    (folder / name).write_bytes((folder.parent / "two" / name).read_bytes())
    with pytest.raises(ValueError, match=f"manifest.json describes, but {name} does not match its checksum; copy or"):
        DetrisForReferringSegmentation.from_pretrained(folder)
    (folder / "manifest.json").unlink()  # without one, as in earlier versions, the files are taken as they are
    DetrisForReferringSegmentation.from_pretrained(folder)


# -- damaged values on load -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda w: w * float("nan"), "NaN or infinity"),
        (lambda w: w.double() * 1e300, "NaN or infinity"),
        (lambda w: w.int(), "torch.int32"),
        (lambda w: w.bool(), "torch.bool"),
        (lambda w: w.to(torch.complex64), "torch.complex64"),
    ],
)
@pytest.mark.parametrize("file", ["head.safetensors", "text_adapter/adapter_model.safetensors"])
def test_values_that_no_training_gives_are_refused(saved, file, change, problem):
    _, folder = saved
    (folder / "manifest.json").unlink()
    weights = load_file(folder / file)
    key = max(weights, key=lambda name: weights[name].numel())
    save_file({**weights, key: change(weights[key])}, folder / file)
    with pytest.raises(ValueError, match=f"{file}: the weights .* for {key}, got .*{problem}"):
        DetrisForReferringSegmentation.from_pretrained(folder)


def test_an_adapter_that_the_config_does_not_name_is_refused(saved):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vision_adapter": None}))
    match = r"config.json: expected vision_adapter with .*, got null; take all files from the same checkpoint"
    with pytest.raises(ValueError, match=match):
        DetrisForReferringSegmentation.from_pretrained(folder)


def test_an_unknown_type_of_adapter_is_refused(saved):
    _, folder = saved
    file = folder / "vision_adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "peft_type": "LORA"}))
    with pytest.raises(ValueError, match=r"adapter_config.json: expected peft_type 'DENSE_ALIGNER', .*, got 'LORA'"):
        DetrisForReferringSegmentation.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_adapter"]["peft_type"] = "NO_SUCH_TYPE"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json: vision_adapter.peft_type: expected .*, got 'NO_SUCH_TYPE'; "):
        DetrisForReferringSegmentation.from_pretrained(folder)


# -- keyword arguments of transformers --------------------------------------------------------------------------------


def test_keyword_arguments_of_transformers(saved, monkeypatch):
    _, folder = saved
    load = DetrisForReferringSegmentation.from_pretrained
    loaded = load(folder, torch_dtype=torch.bfloat16, low_cpu_mem_usage=True, use_safetensors=True)
    assert {p.dtype for p in loaded.parameters() if not p.requires_grad} == {torch.bfloat16}
    loaded = load(folder, device_map="cpu", max_memory={"cpu": "1GB"}, quantization_config=None)
    assert loaded.vision_model.device.type == "cpu"
    passed = []
    monkeypatch.setattr(
        loading, "load_pretrained_backbone", lambda kind, *_, **keywords: passed.append(keywords) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        load(folder, quantization_config="bits", max_memory={0: "1GB"}, low_cpu_mem_usage=True)
    assert passed == [{"quantization_config": "bits", "max_memory": {0: "1GB"}}]
    with pytest.raises(ValueError, match=r"torch_dtype=torch.float16: .*; pass dtype only"):
        load(folder, torch_dtype=torch.float16, dtype=torch.float32)
    with pytest.raises(
        TypeError, match=r"unexpected keyword arguments: load_in_8bit; expected some of .*; for others"
    ):
        load(folder, load_in_8bit=True)
