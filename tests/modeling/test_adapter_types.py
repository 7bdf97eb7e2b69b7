"""Every type of adapter that the installed peft knows: it trains, saves and loads bit-equal, or is refused."""

from __future__ import annotations

import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig, PeftConfig, PromptTuningConfig
from transformers import CLIPTextModelWithProjection, Dinov2WithRegistersModel

from detris_peft import DetrisForReferringSegmentation
from detris_peft.adapters.registry import type_name
from tests.helpers.tiny_models import inputs, perturb, tiny_config

TYPES = sorted(type_name(peft_type) for peft_type in PEFT_TYPE_TO_CONFIG_MAPPING)
TARGETS = ["q_proj", "v_proj"]
# Fields that a type needs for modules that are 32 wide, in addition to its target modules.
FIELDS = {
    "ADAMSS": {"r": 4},
    "C3A": {"block_size": 8},
    "DENSE_ALIGNER": {"dim": 16, "text_dim": 48, "layers_to_transform": [0], "cross_attention_dim": 16},
    "IA3": {"target_modules": ["k_proj", "v_proj", "fc2"], "feedforward_modules": ["fc2"]},
    "LN_TUNING": {"target_modules": ["norm1", "norm2"]},
    "MISS": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "VBLORA": {"vector_length": 8, "num_vectors": 16},
    "WAVEFT": {"n_frequency": 100},
}
WORKS = {
    *(
        "BEFT",
        "BOFT",
        "BOTTLENECK_ADAPTER",
        "C3A",
        "COMPACTER",
        "DEFT",
        "DELORA",
        "DENSE_ALIGNER",
        "FOURIERFT",
        "GLORA",
    ),
    *("GRALORA", "HIRA", "HRA", "IA3", "LILY", "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS", "OFT", "OSF", "PEANUT"),
    *("PVERA", "RANDLORA", "ROAD", "SUPERTUNING", "VERA", "WAVEFT"),
}
PROMPTS = {"ADAPTION_PROMPT", "CPT", "MULTITASK_PROMPT_TUNING", "POLY", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"}
REFUSED = {*PROMPTS, "ADALORA", "FROD", "PSOFT", "SHADOW", "TEXT_ADAPTER", "XLORA"}


def build(backbones, config) -> DetrisForReferringSegmentation:
    vision = Dinov2WithRegistersModel.from_pretrained(backbones / "vision")
    text = CLIPTextModelWithProjection.from_pretrained(backbones / "text")
    return DetrisForReferringSegmentation.from_backbones(vision, text, config)


# In the default tests: our own types and those that docs/adapters.md recommends.
COMMON = {"BOTTLENECK_ADAPTER", "COMPACTER", "DENSE_ALIGNER", "IA3", "LN_TUNING", "LORA", "OFT", "VERA"}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("peft_type", [t if t in COMMON else pytest.param(t, marks=pytest.mark.slow) for t in TYPES])
def test_a_type_round_trips_or_is_refused(peft_type, backbones, tmp_path):
    own = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type].__module__.startswith("detris_peft")
    adapter = {"peft_type": peft_type, **({} if own else {"target_modules": TARGETS}), **FIELDS.get(peft_type, {})}
    torch.manual_seed(0)
    problem = None
    try:
        model = build(backbones, tiny_config(vision_adapter=adapter, text_adapter=None))
    except ValueError as error:
        problem = str(error)
    if problem is not None:
        assert "\n" not in problem
        assert ";" in problem or "required" in problem  # what to do, or what to install
        assert peft_type not in WORKS
        return
    assert peft_type not in REFUSED
    perturb(model)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    batch = inputs()
    model(**batch).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for p in trained.values():
            p -= 0.1 * (p.grad if p.grad is not None else 0)
    assert any(p.grad is not None and p.grad.any() for name, p in trained.items() if name.startswith("vision_model."))
    model.eval()
    with torch.no_grad():
        expected = model(**batch).logits
    model.save_pretrained(tmp_path / "saved")
    torch.manual_seed(1)  # what is drawn or derived on loading must not change the result
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, expected)
    parameters = dict(loaded.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in frozen.items())
    assert {name for name, p in parameters.items() if p.requires_grad} == set(trained)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": ["wq"]}, r"fits a Dinov2WithRegistersModel.*'wq'.*set target_modules.*q_proj"),
        ({"init_lora_weights": "pissa"}, r"leaves the weights of the encoder as they are.*init_lora_weights=True"),
        ({"init_lora_weights": "olora"}, r"leaves the weights of the encoder as they are.*init_lora_weights=True"),
        ({"layer_replication": [[0, 2], [1, 3]]}, r"keeps the 3 blocks.*layer_replication=None"),
        ({"trainable_token_indices": [1]}, r"fits a Dinov2WithRegistersModel"),
        ({"megatron_config": {"a": 1}}, r"fits a Dinov2WithRegistersModel"),
    ],
)
def test_a_lora_that_does_not_fit_is_refused(fields, message, backbones):
    config = tiny_config(vision_adapter=LoraConfig(**{"target_modules": TARGETS, **fields}), text_adapter=None)
    with pytest.raises(ValueError, match=message) as error:
        build(backbones, config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal"])
def test_initializations_of_lora_that_keep_the_encoder_are_accepted(init, backbones):
    adapter = LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=init)
    model = build(backbones, tiny_config(vision_adapter=adapter, text_adapter=None))
    plain = Dinov2WithRegistersModel.from_pretrained(backbones / "vision").state_dict()
    adapted = model.vision_model.state_dict()
    key = "encoder.layer.0.attention.q_proj"
    assert torch.equal(adapted[f"base_model.model.{key}.base_layer.weight"], plain[f"{key}.weight"])


def test_a_config_that_peft_has_saved_is_trained(backbones, tmp_path):
    """peft writes `inference_mode: true`, which would freeze the new adapter."""
    LoraConfig(target_modules=TARGETS, inference_mode=True).save_pretrained(tmp_path)
    adapter = PeftConfig.from_pretrained(tmp_path)
    assert adapter.inference_mode
    model = build(backbones, tiny_config(vision_adapter=adapter, text_adapter=None))
    assert [name for name, p in model.vision_model.named_parameters() if p.requires_grad]


def test_token_embeddings_can_be_trained_but_no_other_modules(backbones):
    adapter = {"peft_type": "TRAINABLE_TOKENS", "token_indices": [1, 2], "target_modules": ["token_embedding"]}
    model = build(backbones, tiny_config(text_adapter=adapter))
    assert sum(p.numel() for p in model.text_model.parameters() if p.requires_grad) == 2 * 48
    for changes, message in (
        ({"target_modules": ["q_proj"]}, "adapter of token embeddings, got one of .*q_proj; set target_modules"),
        ({"token_indices": [1, 60]}, "out of bounds"),
    ):
        with pytest.raises(ValueError, match=message):
            build(backbones, tiny_config(text_adapter={**adapter, **changes}))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (PromptTuningConfig(), r"vision_adapter: expected an adapter that changes modules.*PROMPT_TUNING"),
        (PeftConfig(), r"vision_adapter: expected an adapter that changes modules.*PeftConfig"),
        (LoraConfig, r"vision_adapter: expected a config of peft.*got <class"),
        ("LORA", r"vision_adapter: expected a config of peft.*got 'LORA'"),
        ({"peft_type": "LORA", "r": 10**9}, r"vision_adapter.r=1000000000: expected at most 16,384"),
        ({"peft_type": "LORA", "r": "8"}, r"vision_adapter.r='8': expected int"),
        (
            {"peft_type": "LORA", "lora_alpha": float("nan")},
            r"vision_adapter.lora_alpha=nan: expected a finite number",
        ),
        (
            {"peft_type": "LORA", "rank_pattern": {"(": 2}},
            r"vision_adapter.rank_pattern=.*: expected a regular expression, got an invalid one",
        ),
        (
            {"peft_type": "LORA", "layers_to_transform": [0], "layers_pattern": "("},
            r"vision_adapter.layers_pattern='\(': expected a regular expression, got an invalid one",
        ),
        (
            {"peft_type": "LORA", "lora_dropout": -1.0},
            r"vision_adapter.lora_dropout=-1.0: expected a value in \[0, 1\)",
        ),
        (LoraConfig(megatron_config={"a": object()}), r"LoraConfig: expected fields that JSON can hold.*\(object\)"),
        ({"peft_type": "LORA", "task_type": "X"}, r"vision_adapter: Invalid task type"),
        ({"peft_type": "LORA", "init_lora_weights": "eva"}, r"vision_adapter.eva_config: expected no nested config"),
        ({"peft_type": ["LORA"]}, r"vision_adapter.peft_type: expected a type registered with peft"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_config_that_cannot_be_an_adapter_is_refused(adapter, message):
    with pytest.raises(ValueError, match=message) as error:
        tiny_config(vision_adapter=adapter)
    assert "\n" not in str(error.value)


def test_a_subclass_without_a_type_of_its_own_is_refused():
    class OtherLora(LoraConfig):
        pass

    with pytest.raises(ValueError, match=r"OtherLora.*would be loaded as LORA; call detris_peft.adapters.register"):
        tiny_config(vision_adapter=OtherLora(target_modules=TARGETS))
