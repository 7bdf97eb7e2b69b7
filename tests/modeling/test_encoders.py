"""Every supported image encoder with every text encoder, at an image size other than that of their configs."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model

from detris_peft import DetrisForReferringSegmentation
from detris_peft.modeling.encoders import end_positions
from detris_peft.tokenization_detris import train_tokenizer
from tests.helpers.tiny_models import IMAGE, TEXT, image_encoder, inputs, perturb, text_encoder, tiny_config


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize("image", IMAGE)
def test_from_backbones(image, text):
    """Shapes, gradients of every trained weight, and feature maps equal to the plain backbones' states."""
    vision_model, text_model = image_encoder(image), text_encoder(text)
    plain_vision, plain_text = copy.deepcopy(vision_model), copy.deepcopy(text_model)
    model = DetrisForReferringSegmentation.from_backbones(vision_model, text_model, tiny_config())
    config = model.config
    assert config.vision_config.architectures == [type(plain_vision).__name__]
    assert config.text_config.architectures == [type(plain_text).__name__]
    batch = inputs(height=40, width=56, pad=config.pad_token_id)
    out = model(**batch)
    assert out.logits.shape == (2, 1, 20, 28)
    assert out.sentence_state.shape == (2, config.sentence_dim)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)

    with model.vision_model.disable_adapter(), model.text_model.disable_adapter(), torch.no_grad():
        states, sentence = model.encode_text(batch["input_ids"])
        feature_maps = model.encode_image(batch["pixel_values"], states)
        keywords = {} if image.startswith("dino") else {"interpolate_pos_encoding": True}
        reference = plain_vision(batch["pixel_values"], output_hidden_states=True, **keywords)
        mask = (batch["input_ids"] != config.pad_token_id).long() if text in ("bert", "xlm_roberta") else None
        text_output = plain_text(input_ids=batch["input_ids"], attention_mask=mask)
    expected = [reference.hidden_states[1], reference.hidden_states[2], reference.last_hidden_state]
    assert config.extract_layers == [0, 1]
    for feature_map, tokens in zip(feature_maps, expected, strict=True):
        torch.testing.assert_close(feature_map.flatten(2).transpose(1, 2), tokens[:, -35:])
    torch.testing.assert_close(states, text_output.last_hidden_state)
    if text == "clip_projected":
        torch.testing.assert_close(sentence, text_output.text_embeds)
    elif text in ("clip", "siglip"):
        torch.testing.assert_close(sentence, text_output.pooler_output)
    else:
        torch.testing.assert_close(sentence, text_output.last_hidden_state[:, 0])


@pytest.mark.parametrize(("image", "text"), [*zip(IMAGE, [*TEXT, "clip"], strict=True)])
def test_model_is_built_from_configs_without_architectures(image, text):
    """`DetrisForReferringSegmentation(config)` finds the class of a backbone config that does not name one."""
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
    text_model = type(text_encoder(text)).from_pretrained(tmp_path / "text")
    model = DetrisForReferringSegmentation.from_backbones(vision, text_model, tiny_config())
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


def test_text_width_other_than_text_dim_raises():
    match = r"text_dim=48: expected the width of .*, 64; set DenseAlignerConfig\(text_dim=64\)"
    with pytest.raises(ValueError, match=match):
        DetrisForReferringSegmentation.from_backbones(image_encoder(), text_encoder(hidden_size=64), tiny_config())


def test_backbone_with_adapters_raises():
    """A second model over the same backbone would silently replace the adapters of the first."""
    vision, text = image_encoder(), text_encoder()
    DetrisForReferringSegmentation.from_backbones(vision, text, tiny_config())
    match = "expected a dinov2_with_registers backbone without adapters, got one that already has some; pass"
    with pytest.raises(ValueError, match=match):
        DetrisForReferringSegmentation.from_backbones(vision, text_encoder(), tiny_config())
    wrapped = get_peft_model(text_encoder(), tiny_config().text_adapter)
    with pytest.raises(ValueError, match="expected a clip_text_model backbone without adapters"):
        DetrisForReferringSegmentation.from_backbones(image_encoder(), wrapped, tiny_config())


def test_from_backbones_does_not_change_the_users_config():
    config = tiny_config()
    before = config.to_dict()
    DetrisForReferringSegmentation.from_backbones(image_encoder("vit"), text_encoder("bert"), config)
    assert config.to_dict() == before


# --- Sentence state --------------------------------------------------------------------------------------------------


def sentence_states(text, input_ids, **changes):
    """Return the sentence states of a model without adapters."""
    config = tiny_config(vision_adapter=None, text_adapter=None, **changes)
    model = DetrisForReferringSegmentation.from_backbones(image_encoder(), text, config)
    with torch.no_grad():
        return model.encode_text(input_ids)[1]


SENTENCES = torch.tensor([[58, 10, 11, 59, 0, 0, 0], [58, 10, 12, 13, 59, 0, 0], [58, 7, 8, 9, 10, 11, 59]])
ENDS = [3, 4, 6]


@pytest.mark.parametrize("kind", ["clip", "clip_projected"])
@pytest.mark.parametrize("eos_token_id", [59, 2, 30], ids=["own", "legacy", "wrong"])
def test_the_sentence_state_is_read_at_the_end_token(kind, eos_token_id):
    """transformers reads it at position 0 if the config's id does not occur."""
    torch.manual_seed(0)
    reference = text_encoder(kind)
    with torch.no_grad():
        outputs = reference(input_ids=SENTENCES)
    expected = outputs.text_embeds if kind == "clip_projected" else outputs.pooler_output
    text = text_encoder(kind, eos_token_id=eos_token_id)
    text.load_state_dict(reference.state_dict())
    torch.testing.assert_close(sentence_states(text, SENTENCES), expected, rtol=0, atol=0)


def test_an_added_token_does_not_move_the_sentence_state_of_a_legacy_config():
    """With eos_token_id 2, transformers reads the state at the highest id, which is the added token's."""
    torch.manual_seed(0)
    text = text_encoder(eos_token_id=2)
    text.resize_token_embeddings(61, mean_resizing=False)
    ids = SENTENCES.clone()
    ids[0, 1] = 60
    with torch.no_grad():
        expected = text.text_projection(text(input_ids=ids).last_hidden_state[range(3), ENDS])
    torch.testing.assert_close(sentence_states(text, ids), expected, rtol=0, atol=0)


def test_padding_with_the_end_token_does_not_move_the_sentence_state():
    """Hugging Face's CLIP tokenizer pads with the end token."""
    padded = torch.where(SENTENCES == 0, 59, SENTENCES)
    config = text_encoder().config
    for pad in (0, 59):
        assert end_positions(config, padded, pad).tolist() == ENDS


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize("training", [False, True])
def test_a_sentence_of_one_token(text, training):
    model = DetrisForReferringSegmentation.from_backbones(image_encoder(), text_encoder(text), tiny_config())
    batch = {**inputs(), "input_ids": torch.tensor([[59], [59]])}
    assert model.train(training)(**batch).logits.shape == (2, 1, 24, 24)


@pytest.mark.parametrize("token", [60, -1])
def test_tokens_beyond_the_vocabulary_are_named(token):
    model = DetrisForReferringSegmentation.from_backbones(image_encoder(), text_encoder(), tiny_config())
    batch = inputs()
    batch["input_ids"][1, 2] = token
    with pytest.raises(
        ValueError, match=f"input_ids: expected tokens from 0 to 59, .* got {token}; use the tokenizer"
    ):
        model(**batch)


def test_from_backbones_checks_the_tokenizer():
    tokenizer = train_tokenizer(["the red circle on the left"], 60)
    DetrisForReferringSegmentation.from_backbones(image_encoder(), text_encoder(), tiny_config(), tokenizer)
    with pytest.raises(ValueError, match=r"expected eos_token_id=40, .*, got 59"):
        DetrisForReferringSegmentation.from_backbones(
            image_encoder(), text_encoder(eos_token_id=40), tiny_config(), tokenizer
        )
