"""Weights that accelerate keeps on the CPU or on disk until their module is called."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from peft import LNTuningConfig, LoraConfig, PeftModel

from detris_peft import DetrisForReferringSegmentation
from tests.helpers.adapter_cases import AdapterCase, each_tuner
from tests.helpers.tiny_models import image_encoder, inputs, perturb, text_encoder, tiny_config

CPU = torch.device("cpu")


def offload(model: torch.nn.Module, where: str, folder) -> None:
    if where == "cpu":
        cpu_offload(model, execution_device=CPU)
    else:
        disk_offload(model, str(folder), execution_device=CPU)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = DetrisForReferringSegmentation.from_backbones(image_encoder(), text_encoder(), tiny_config())
    perturb(model)
    return model.eval()


@pytest.mark.parametrize("where", ["cpu", "disk"])
@torch.no_grad()
def test_the_complete_model_can_be_offloaded(model, where, tmp_path):
    batch = {key: value for key, value in inputs().items() if key != "labels"}
    expected = model(**batch).logits
    offloaded = copy.deepcopy(model)
    offload(offloaded, where, tmp_path)
    for _ in range(2):
        assert torch.equal(offloaded(**batch).logits, expected)
    assert all(parameter.is_meta for parameter in offloaded.parameters())


@torch.no_grad()
def test_a_checkpoint_loads_over_offloaded_backbones(model, tmp_path):
    batch = {key: value for key, value in inputs().items() if key != "labels"}
    with pytest.warns(UserWarning, match="does not name its vision and text backbone"):
        model.save_pretrained(tmp_path / "checkpoint")
    backbones = [copy.deepcopy(part).unload() for part in (model.vision_model, model.text_model)]
    for backbone in backbones:
        offload(backbone, "cpu", tmp_path)
    loaded = DetrisForReferringSegmentation.from_pretrained(
        tmp_path / "checkpoint", vision_model=backbones[0], text_model=backbones[1]
    )
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-5)
    assert not any(parameter.is_meta for parameter in loaded.parameters() if parameter.requires_grad)


@each_tuner
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_an_adapter_can_be_loaded_into_an_offloaded_encoder(case: AdapterCase, where: str, tmp_path):
    adapted = case.make_model()
    adapted.save_pretrained(tmp_path / "adapter")
    backbone = case.make_backbone()
    offload(backbone, where, tmp_path / "weights")
    loaded = PeftModel.from_pretrained(backbone, tmp_path / "adapter").eval()
    torch.testing.assert_close(case.run(loaded), case.run(adapted), atol=1e-5, rtol=1e-5)
    loaded.save_pretrained(tmp_path / "again")  # adapters are not offloaded
    again = PeftModel.from_pretrained(case.make_backbone(), tmp_path / "again").eval()
    assert torch.equal(
        case.run(again), case.run(PeftModel.from_pretrained(case.make_backbone(), tmp_path / "adapter"))
    )


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_adapters_of_peft_over_offloaded_backbones_are_refused(where, tmp_path):
    """peft would put their weights on the meta device, where loading them has no effect."""
    vision = image_encoder()
    offload(vision, where, tmp_path)
    for adapter in (LoraConfig(target_modules=["q_proj"]), LNTuningConfig(target_modules=["norm1"])):
        with pytest.raises(
            ValueError, match=r"whose weights are in memory for a L.* adapter, got one that is offloaded"
        ):
            DetrisForReferringSegmentation.from_backbones(
                copy.deepcopy(vision), text_encoder(), tiny_config(vision_adapter=adapter)
            )
