"""Every image encoder with every text encoder, at a size that neither was made for."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model

from detris_peft import DetrisForReferringSegmentation
from tests.helpers.tiny_models import IMAGE, TEXT, image_encoder, inputs, perturb, text_encoder, tiny_config


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize("image", IMAGE)
def test_from_backbones(image, text):
    """Shapes, gradients to every trained weight, and the backbones' own numbers as the taps."""
    vision, words = image_encoder(image), text_encoder(text)
    plain_vision, plain_words = copy.deepcopy(vision), copy.deepcopy(words)
    model = DetrisForReferringSegmentation.from_backbones(vision, words, tiny_config())
    config = model.config
    assert config.vision_config.architectures == [type(plain_vision).__name__]
    assert config.text_config.architectures == [type(plain_words).__name__]
    batch = inputs(height=40, width=56, pad=config.pad_token_id)
    out = model(**batch)
    assert out.logits.shape == (2, 1, 20, 28)
    assert out.sentence_state.shape == (2, config.sentence_dim)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)

    with model.vision_model.disable_adapter(), model.text_model.disable_adapter(), torch.no_grad():
        states, sentence = model.encode_text(batch["input_ids"])
        taps = model.encode_image(batch["pixel_values"], states)
        keywords = {} if image.startswith("dino") else {"interpolate_pos_encoding": True}
        reference = plain_vision(batch["pixel_values"], output_hidden_states=True, **keywords)
        mask = (batch["input_ids"] != config.pad_token_id).long() if text in ("bert", "xlm_roberta") else None
        said = plain_words(input_ids=batch["input_ids"], attention_mask=mask)
    expected = [reference.hidden_states[2], reference.hidden_states[3], reference.last_hidden_state]
    assert config.extract_layers == [1, 2]
    for tap, tokens in zip(taps, expected, strict=True):
        torch.testing.assert_close(tap.flatten(2).transpose(1, 2), tokens[:, -35:])
    torch.testing.assert_close(states, said.last_hidden_state)
    if text == "clip_projected":
        torch.testing.assert_close(sentence, said.text_embeds)
    elif text in ("clip", "siglip"):
        torch.testing.assert_close(sentence, said.pooler_output)
    else:
        torch.testing.assert_close(sentence, said.last_hidden_state[:, 0])


@pytest.mark.parametrize(("image", "text"), [*zip(IMAGE, [*TEXT, "clip"], strict=True)])
def test_configs_alone_build_their_encoders(image, text):
    """`DetrisForReferringSegmentation(config)` knows which class a bare config stands for."""
    config = tiny_config(vision_config=IMAGE[image][1](**IMAGE[image][2]), text_config=TEXT[text][1](**TEXT[text][2]))
    model = DetrisForReferringSegmentation(config)
    assert type(model.vision_model.get_base_model()) is IMAGE[image][0]
    expected = "clip_projected" if text == "clip" else text
    assert type(model.text_model.get_base_model()) is TEXT[expected][0]


@pytest.mark.parametrize(
    ("image", "text"), [("dinov3", "bert"), ("clip", "clip"), ("siglip", "siglip"), ("vit", "xlm_roberta")]
)
def test_save_and_load(image, text, tmp_path):
    image_encoder(image).save_pretrained(tmp_path / "vision")
    text_encoder(text).save_pretrained(tmp_path / "text")
    vision = type(image_encoder(image)).from_pretrained(tmp_path / "vision")
    words = type(text_encoder(text)).from_pretrained(tmp_path / "text")
    model = DetrisForReferringSegmentation.from_backbones(vision, words, tiny_config())
    perturb(model)
    model.save_pretrained(tmp_path / "run")
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")
    batch = inputs(pad=model.config.pad_token_id)
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch).logits, loaded(**batch).logits)


def test_default_config_takes_its_text_width_from_the_encoder():
    vision, text = image_encoder(num_hidden_layers=12), text_encoder(num_hidden_layers=12)
    model = DetrisForReferringSegmentation.from_backbones(vision, text)
    assert model.config.vision_adapter.text_dim == 48
    assert model(**inputs()).logits.shape == (2, 1, 24, 24)


def test_text_width_other_than_the_aligners_is_refused():
    with pytest.raises(ValueError, match="hidden states are 64 wide: set DenseAlignerConfig"):
        DetrisForReferringSegmentation.from_backbones(image_encoder(), text_encoder(hidden_size=64), tiny_config())


def test_a_backbone_is_used_once():
    """A second model on the same objects would silently replace the first one's adapters."""
    vision, text = image_encoder(), text_encoder()
    DetrisForReferringSegmentation.from_backbones(vision, text, tiny_config())
    with pytest.raises(ValueError, match="dinov2_with_registers backbone carries adapters already: pass a plain one"):
        DetrisForReferringSegmentation.from_backbones(vision, text_encoder(), tiny_config())
    wrapped = get_peft_model(text_encoder(), tiny_config().text_adapter)
    with pytest.raises(ValueError, match="clip_text_model backbone carries adapters already"):
        DetrisForReferringSegmentation.from_backbones(image_encoder(), wrapped, tiny_config())


def test_the_users_config_is_left_alone():
    config = tiny_config()
    before = config.to_dict()
    DetrisForReferringSegmentation.from_backbones(image_encoder("vit"), text_encoder("bert"), config)
    assert config.to_dict() == before
