"""Every kind of model is exported: other encoders, adapters of peft, a Bridger, trained encoders."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from detris_peft import BridgerConfig
from detris_peft.export import export_model
from tests.export.conftest import make_model

pytestmark = pytest.mark.slow  # each export takes 5 seconds and more

_PLAIN = {"vision_adapter": None, "text_adapter": None}
_BRIDGER = {"bridger": BridgerConfig(dim=16, num_heads=2, vision_after_blocks=[0, 1], text_after_blocks=[0, 1])}
MODELS = {
    "official": {"position_interpolation": "official"},
    "registers": {"vision": "dinov2_with_registers", "depth": 3},
    "dinov3": {"vision": "dinov3"},
    "siglip": {"vision": "siglip", "text": "clip"},
    "clip": {"vision": "clip"},
    "vit": {"vision": "vit"},
    "lora": {
        "vision_adapter": LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
        "text_adapter": LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    },
    "trained": {**_PLAIN, "train_backbones": True},
    "bridger": {**_PLAIN, **_BRIDGER, "depth": 2, "extract_layers": [0]},
}


@pytest.mark.parametrize("name", MODELS)
def test_torch_export(name, tmp_path):
    model, processor = make_model(**MODELS[name])
    model.train()
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    export_model(model, processor, tmp_path / "model.pt2", "torch_export", image_size=64)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state.pop(key), value) for key, value in model.state_dict().items())
    assert not state
    program = torch.export.load(tmp_path / "model.pt2").module()
    pixel_values, input_ids = torch.randn(2, 3, 64, 64), processor(text=["a red square", "circle"])["input_ids"]
    with torch.no_grad():
        expected = model.eval()(pixel_values, input_ids).logits
    torch.testing.assert_close(program(pixel_values, input_ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["dinov3", "lora", "bridger"])
def test_onnx(name, tmp_path):
    pytest.importorskip("onnxruntime")
    assert export_model(*make_model(**MODELS[name]), tmp_path / "model.onnx", "onnx").difference < 1e-4
