"""Adapters of peft (LoRA, DoRA, IA3, LN tuning) as fields of a `DetrisConfig`: saved, loaded, switched."""

from __future__ import annotations

import json

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, PeftModel, PeftType, PromptTuningConfig, get_peft_model
from transformers import Dinov2WithRegistersModel, Trainer

from detris_peft import DenseAlignerConfig, DetrisConfig, DetrisForReferringSegmentation
from detris_peft.adapters.state_dict import adapter_state_dict
from detris_peft.modeling.backbone_adapters import adapt_backbone
from tests.helpers.checkpoints import logits, make
from tests.helpers.tiny_models import IMAGE, image_encoder, perturb, text_encoder, tiny_config
from tests.modeling.test_transformers_trainer import Rows, arguments

ADAPTERS = {
    "lora": LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
    "lora with biases": LoraConfig(r=2, target_modules=["q_proj"], bias="lora_only"),
    "lora and a complete module": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["layernorm"]),
    "dora": LoraConfig(r=2, target_modules="all-linear", use_dora=True),
    "ia3": IA3Config(target_modules=["k_proj", "fc2"], feedforward_modules=["fc2"]),
    "ln tuning": LNTuningConfig(target_modules=["norm1", "norm2"]),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_saved_and_loaded(backbones, tmp_path, name):
    model = make(backbones, vision_adapter=ADAPTERS[name])
    model.save_pretrained(tmp_path)
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert type(loaded.config.vision_adapter) is type(ADAPTERS[name])
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == trained


@pytest.mark.parametrize("name", ADAPTERS)
def test_peft_loads_the_folder_of_an_adapter(backbones, tmp_path, name):
    model = make(backbones, vision_adapter=ADAPTERS[name])
    model.save_pretrained(tmp_path)
    encoder = Dinov2WithRegistersModel.from_pretrained(backbones / "vision")
    encoder = PeftModel.from_pretrained(encoder, tmp_path, subfolder="vision_adapter")
    pixels = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        expected, got = model.vision_model(pixels), encoder.eval()(pixels)
    assert torch.equal(got.last_hidden_state, expected.last_hidden_state)


def test_the_active_adapter_is_saved(backbones, tmp_path):
    model = make(backbones, vision_adapter=ADAPTERS["lora"])
    first = logits(model)
    model.vision_model.add_adapter("other", LoraConfig(r=4, target_modules=["k_proj"], init_lora_weights=False))
    model.vision_model.set_adapter("other")
    second = logits(model)
    assert not torch.equal(first, second)
    model.save_pretrained(tmp_path / "second")
    model.save_pretrained(tmp_path / "first", adapter_name="default")
    assert torch.equal(logits(DetrisForReferringSegmentation.from_pretrained(tmp_path / "second")), second)
    assert torch.equal(logits(DetrisForReferringSegmentation.from_pretrained(tmp_path / "first")), first)
    assert json.loads((tmp_path / "second" / "config.json").read_text())["vision_adapter"]["r"] == 4


@pytest.mark.parametrize("image", IMAGE)
@pytest.mark.parametrize("text", ["clip_projected", "bert"])
def test_target_modules_have_a_default_for_every_encoder(image, text):
    """The default table of peft lacks most encoders, and has names of earlier versions of transformers for others."""
    config = tiny_config(vision_adapter={"peft_type": "LORA", "r": 2}, text_adapter={"peft_type": "LN_TUNING"})
    config.vision_config, config.text_config = image_encoder(image).config, text_encoder(text).config
    model = DetrisForReferringSegmentation(config)
    names = {name.partition(".lora_")[0] for name, _ in model.vision_model.named_parameters() if "lora_A" in name}
    assert len(names) == 2 * 3  # queries and values of three blocks
    linear = [name for name, p in model.text_model.named_parameters() if p.requires_grad and p.ndim > 1]
    assert linear == []
    norms = sum(isinstance(m, torch.nn.LayerNorm) for m in text_encoder(text).modules())
    assert sum(p.requires_grad for p in model.text_model.parameters()) == 2 * norms


def test_default_target_modules_are_not_written(backbones, tmp_path):
    model = make(backbones, vision_adapter=LoraConfig(r=2), text_adapter=LNTuningConfig())
    model.save_pretrained(tmp_path)
    assert "target_modules" not in json.loads((tmp_path / "config.json").read_text())["vision_adapter"]
    saved = json.loads((tmp_path / "vision_adapter" / "adapter_config.json").read_text())
    assert {"q_proj", "v_proj"} <= set(saved["target_modules"])
    assert torch.equal(logits(DetrisForReferringSegmentation.from_pretrained(tmp_path)), logits(model))


def test_lora_and_dense_aligners_in_one_encoder_are_saved_by_name(backbones, tmp_path):
    model = make(backbones, vision_adapter=ADAPTERS["lora"], text_adapter=None)
    aligner = DenseAlignerConfig(dim=16, layers_to_transform=[0], text_dim=48, cross_attention_dim=16)
    lora = model.vision_model
    model.vision_model = get_peft_model(lora.get_base_model(), aligner, adapter_name="aligner")
    perturb(model)
    model.eval()
    with pytest.raises(ValueError, match=r"expected one active adapter to save, got .*'aligner'.*; pass adapter_name"):
        model.save_pretrained(tmp_path / "both")
    for name, off in (("aligner", lora.base_model), ("default", model.vision_model.base_model)):
        model.save_pretrained(tmp_path / name, adapter_name=name)
        off.disable_adapter_layers()
        expected = logits(model)
        off.enable_adapter_layers()
        assert torch.equal(logits(DetrisForReferringSegmentation.from_pretrained(tmp_path / name)), expected)


def test_a_merged_adapter_is_saved_with_the_encoders_only(backbones, tmp_path):
    model = make(backbones, vision_adapter=ADAPTERS["lora"], text_adapter=None)
    model.vision_model = model.vision_model.merge_and_unload()
    with pytest.raises(ValueError, match=r"got an encoder without it; .* save before merge_and_unload"):
        model.save_pretrained(tmp_path / "adapter")
    model.config.vision_adapter, model.config.train_backbones = None, True
    model.save_pretrained(tmp_path / "merged")
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("width", [40, 48], ids=["other width", "same width"])
def test_the_weights_of_encoders_with_the_same_modules_are_told_apart(width, tmp_path):
    """CLIP's image and text encoders have the same names: `Trainer` passes the content of a file without its name."""
    adapter = LoraConfig(r=2, target_modules=["q_proj"])
    vision, text = image_encoder("clip", hidden_size=width, num_attention_heads=4), text_encoder("clip")
    config = tiny_config(vision_adapter=adapter, text_adapter=adapter)
    model = DetrisForReferringSegmentation.from_backbones(vision, text, config)
    weights = {key: value + 1 for key, value in adapter_state_dict(model.text_model, "default").items()}
    if width == 48:
        with pytest.raises(ValueError, match=r"got some that fit both.*; load the checkpoint with from_pretrained"):
            model.load_state_dict(weights, strict=False)
        return
    model.load_state_dict(weights, strict=False)
    assert all(torch.equal(weights[key], v) for key, v in adapter_state_dict(model.text_model, "default").items())


def test_dropout_is_active_in_training_only(backbones):
    model = make(backbones, vision_adapter=LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5))
    attention = model.vision_model.get_base_model().encoder.layer[0].attention
    assert model.train() is model
    assert attention.q_proj.lora_dropout["default"].training
    assert not attention.q_proj.base_layer.training
    assert not attention.training
    model.eval()
    assert not attention.q_proj.lora_dropout["default"].training


def test_text_states_are_passed_to_adapters_that_take_them(backbones):
    for adapter, expected in ((ADAPTERS["lora"], False), (None, False), (tiny_config().vision_adapter, True)):
        model, seen = make(backbones, vision_adapter=adapter), []
        model.vision_model.register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append("text_states" in kwargs), with_kwargs=True
        )
        logits(model)
        assert seen == [expected]


def test_the_trainer_of_transformers_resumes(backbones, tmp_path):
    def train(resume=None):
        torch.manual_seed(0)
        model = make(backbones, vision_adapter=ADAPTERS["dora"], text_adapter=None)
        Trainer(model, arguments(tmp_path, max_steps=2, save_steps=1), train_dataset=Rows()).train(resume)
        return logits(model.eval())

    whole = train()
    assert torch.equal(train(str(tmp_path / "checkpoint-1")), whole)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (LoraConfig(target_modules=["qkv"]), r"Target modules .*qkv.* not found .*; set target_modules to .*q_proj"),
        (IA3Config(), "set target_modules to modules of the encoder .*q_proj"),
        (IA3Config(target_modules=["k_proj"]), "set target_modules and feedforward_modules"),
        (LoraConfig(r=0, target_modules=["q_proj"]), "`r` should be a positive.*; correct its fields"),
        (LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"), "initialization changes .* of them"),
        (LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="olora"), "initialization changes .* of them"),
        (LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[7]), "fits a Dinov2WithRegistersModel"),
        (DenseAlignerConfig(text_dim=48, layers_to_transform=[7]), "expected blocks 0 to 2 .*, got 7"),
    ],
    ids=["targets", "no targets", "no feedforward", "rank", "pissa", "olora", "blocks", "blocks of ours"],
)
def test_an_adapter_that_does_not_fit_is_refused_in_one_line(backbones, adapter, message):
    with pytest.raises(ValueError, match=message) as error:
        make(backbones, vision_adapter=adapter)
    assert "\n" not in str(error.value)


def test_an_adapter_that_is_none_for_an_encoder_is_refused():
    prompts = PromptTuningConfig(num_virtual_tokens=4)
    with pytest.raises(ValueError, match=r"text_adapter: expected an adapter that changes modules .*PROMPT_TUNING"):
        DetrisConfig(text_adapter=prompts)
    with pytest.raises(ValueError, match=r"text_adapter: expected an adapter that changes modules .*PROMPT_TUNING"):
        DetrisConfig(text_adapter={"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4})


def test_a_config_is_written_and_read_again():
    for adapter in ADAPTERS.values():
        config = tiny_config(vision_adapter=adapter)
        values = json.loads(json.dumps(config.to_dict()))
        again = DetrisConfig.from_dict(values)
        assert again.vision_adapter == adapter
        assert PeftType(again.vision_adapter.peft_type) is adapter.peft_type


def test_weights_with_nan_are_not_taken_for_changed_ones(backbones):
    vision = Dinov2WithRegistersModel.from_pretrained(backbones / "vision")
    with torch.no_grad():
        vision.layernorm.weight[0] = float("nan")
    assert isinstance(adapt_backbone(vision, ADAPTERS["lora"]), PeftModel)
