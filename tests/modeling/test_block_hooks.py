"""Several sentences on one image, and a model that torch.compile turns into one graph."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peft import LoraConfig

from detris_peft import BridgerConfig, DenseAlignerConfig, DetrisForReferringSegmentation
from detris_peft.modeling.encoder_run import encoder_blocks
from tests.helpers.tiny_models import IMAGE, image_encoder, inputs, perturb, text_encoder, tiny_config

TEXT = {"siglip": "siglip", "vit": "bert"}  # the others get CLIP
INDICES = torch.tensor([1, 0, 1, 1])


def aligner(layers: list[int]) -> DenseAlignerConfig:
    return DenseAlignerConfig(
        dim=16, layers_to_transform=layers, text_dim=48, cross_attention_dim=16, cross_attention_heads=2
    )


def make(kind: str = "dinov2_with_registers", **changes) -> DetrisForReferringSegmentation:
    torch.manual_seed(0)
    vision, text = image_encoder(kind), text_encoder(TEXT.get(kind, "clip_projected"))
    fields = {"vision_adapter": aligner([1, 2]), "extract_layers": [0, 1], "pad_token_id": None, **changes}
    config = tiny_config(vision_config=vision.config, text_config=text.config, **fields)
    model = DetrisForReferringSegmentation.from_backbones(vision, text, config).eval()
    perturb(model)
    return model


def sentences() -> dict[str, torch.Tensor]:
    """Return two images, four sentences and their masks."""
    batch = inputs(batch=4)
    batch["input_ids"][1, 1:4] = torch.tensor([7, 11, 13])
    batch["input_ids"][2, 1:3] = 5
    return {**batch, "pixel_values": batch["pixel_values"][:2]}


def repeated(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**batch, "pixel_values": batch["pixel_values"][INDICES]}


def block_batches(model: DetrisForReferringSegmentation) -> list[int]:
    """Return a list that receives the batch size of the input of each block, in each forward pass."""
    sizes: list[int] = []
    for block in encoder_blocks(model.vision_model):
        block.mlp.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return sizes


def assert_equal_outputs(model: DetrisForReferringSegmentation) -> None:
    batch = sentences()
    with torch.no_grad():
        expected = model(**repeated(batch))
        got = model(**batch, image_indices=INDICES)
    assert expected.logits[0].allclose(expected.logits[1]) is False
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.loss, expected.loss, atol=1e-5, rtol=0)
    for a, b in zip(got.vision_features, expected.vision_features, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", IMAGE)
def test_blocks_before_the_first_aligner_run_once_per_image(kind):
    model = make(kind)
    assert_equal_outputs(model)
    sizes = block_batches(model)
    with torch.no_grad():
        model(**sentences(), image_indices=INDICES)
    assert sizes == [2, 4, 4]


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        (aligner([0]), [4, 4, 4]),
        (aligner([2]), [2, 2, 4]),
        (None, [2, 2, 2]),
        (LoraConfig(target_modules=["q_proj", "v_proj"]), [2, 2, 2]),
    ],
    ids=["first block", "last block", "no adapter", "LoRA"],
)
def test_encoders_without_text_run_once_per_image(adapter, expected):
    model = make(vision_adapter=adapter, extract_layers=[1, 2])
    assert_equal_outputs(model)
    sizes = block_batches(model)
    with torch.no_grad():
        model(**sentences(), image_indices=INDICES)
    assert sizes == expected


def test_bridger_and_unlisted_encoders_repeat_the_images():
    bridger = BridgerConfig(dim=16, num_heads=2, vision_after_blocks=[0, 2], text_after_blocks=[1, 2])
    assert_equal_outputs(make(vision_adapter=None, text_adapter=None, bridger=bridger))
    model = make()
    model.block_hooks = None
    assert_equal_outputs(model)


def test_an_adapter_that_is_added_later_may_read_the_text_earlier():
    model = make(vision_adapter=aligner([2]))
    model.vision_model.add_adapter("second", aligner([0, 1]))
    model.vision_model.base_model.set_adapter(["default", "second"])
    assert_equal_outputs(model.eval())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_on_several_sentences_per_image(checkpointing):
    config = {"dropout": 0.0, "vision_adapter": aligner([1, 2])}
    config["vision_adapter"].cross_attention_dropout = 0.0
    model = make(**config)
    expected = copy.deepcopy(model)
    if checkpointing:
        model.activation_checkpointing_enable()
    model.train()(**sentences(), image_indices=INDICES).loss.backward()
    expected.train()(**repeated(sentences())).loss.backward()
    for (name, a), b in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None and b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_indices": torch.tensor([0, 1])}, r"image_indices: .*each sentence, got 2 for 4 sentences"),
        ({"image_indices": torch.tensor([0, 1, 1, 2])}, r"image_indices: expected images from 0 to 1, got 2"),
        ({"image_indices": torch.tensor([0, 1, 1, -1])}, r"image_indices: expected images from 0 to 1, got -1"),
        ({"image_indices": INDICES.float()}, r"image_indices: expected integers, got torch.float32"),
        ({"image_indices": INDICES[None]}, r"image_indices: expected .*\(B,\), got shape \(1, 4\)"),
        ({"image_indices": [0, 1, 1, 1]}, r"image_indices: expected .*\(B,\), got list"),
        ({"labels": torch.zeros(2, 48, 48)}, r"labels: expected one for each sentence, got 2 for 4"),
    ],
)
def test_bad_indices_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        make()(**{**sentences(), "image_indices": INDICES, **change})


def test_copies_and_pickles_have_hooks_of_their_own():
    model = make()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.block_hooks.outputs is not model.block_hooks.outputs
        assert_equal_outputs(other)


def test_blocks_that_were_replaced_are_named():
    model = make()
    blocks = encoder_blocks(model.vision_model)
    blocks[1] = copy.deepcopy(encoder_blocks(image_encoder())[1])
    with pytest.raises(RuntimeError, match=r"expected .* to run the blocks \[1\].*create the model again"):
        model(**inputs())


@pytest.mark.parametrize("training", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_new_model_is_one_graph(training):
    model = make().train(training)
    separate = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for arguments in (repeated(sentences()), {**sentences(), "image_indices": INDICES}):
        torch.manual_seed(0)
        got = compiled(**arguments)
        if training:  # dropout has another implementation in compiled models
            got.loss.backward()
        else:
            torch.testing.assert_close(got.logits, separate(**arguments).logits, atol=1e-5, rtol=0)
