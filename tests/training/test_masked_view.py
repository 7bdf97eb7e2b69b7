"""Two-view masked distillation: the masked view, its loss, BatchNorm statistics, runs that are resumed."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoTokenizer

from detris_peft import DetrisForReferringSegmentation, DetrisProcessor
from detris_peft.modeling.losses import distillation_loss, segmentation_loss
from detris_peft.tokenization_detris import train_tokenizer
from detris_peft.training import TrainingArguments, TrainingInterrupted, train
from detris_peft.training.masked_view import MaskedView, mask_token_id
from detris_peft.training.step import TrainingStep
from tests.helpers import toy_run
from tests.helpers.tiny_models import inputs, tiny_config
from tests.training.test_kills import weights
from tests.training.test_resume import stop_after

SENTENCES = ["the small red circle on the left", "the blue square above the circle", "the triangle"]
MODEL_CHANGES = {
    "loss_weights": {"bce": 1.0, "dice": 0.5},
    **dict(zip(("vision_adapter", "text_adapter"), toy_run.adapter_configs(0.1, learn_scale=True), strict=True)),
}
EVERYTHING = {
    "distill_masked_view": True,
    "distill_block_size": 16,
    "no_target_ratio": 0.3,
    "mosaic_ratio": 0.3,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": True,
    "ema_decay": 0.8,
}

pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture(scope="module")
def processor():
    config = tiny_config()
    return DetrisProcessor.from_config(config, train_tokenizer(SENTENCES, config.text_config.vocab_size))


def make_view(processor, rank=0, **changes):
    return MaskedView(processor, TrainingArguments(**changes), rank)


def tokens(processor, number=400):
    return processor(text=SENTENCES)["input_ids"].repeat(number, 1)


def test_the_share_of_masked_blocks_is_exact_and_blocks_are_zero(processor):
    images = torch.rand(5, 3, 96, 80) + 1
    masked = make_view(processor)(images, tokens(processor, 1), 1, 0)["masked_pixel_values"]
    changed = masked != images
    assert (masked[changed] == 0).all()
    # 3 rows and 3 columns of blocks of 32 pixels, of which the last column has 16.
    for image in changed:
        assert torch.equal(image[0], image[1])
        assert torch.equal(image[0], image[2])
        blocks = [image[0, y : y + 32, x : x + 32] for y in range(0, 96, 32) for x in range(0, 80, 32)]
        assert all(block.all() or not block.any() for block in blocks)
        assert sum(bool(block.all()) for block in blocks) == round(0.75 * 9)
    assert len({tuple(image[0].flatten().tolist()) for image in changed}) > 1


@pytest.mark.parametrize("ratio", [0.15, 0.6])
def test_tokens_are_altered_as_configured(processor, ratio):
    ids = tokens(processor, 2000)
    view = make_view(processor, distill_token_ratio=ratio)
    masked = view(torch.zeros(1, 3, 32, 32), ids, 1, 0)["masked_input_ids"]
    tokenizer = processor.tokenizer
    fixed = torch.isin(ids, torch.tensor([tokenizer.bos_token_id, tokenizer.eos_token_id, processor.pad_token_id]))
    assert torch.equal(masked[fixed], ids[fixed])
    words, new = ids[~fixed], masked[~fixed]
    the = tokenizer("the", add_special_tokens=False)["input_ids"][0]
    others = words != the  # where a mask token can be seen
    changed = (new != words)[others].float().mean().item()
    assert changed == pytest.approx(ratio * 0.9, rel=0.1)
    assert ((new == the) & (new != words))[others].float().mean().item() == pytest.approx(ratio * 0.8, rel=0.1)
    random = new[(new != words) & (new != the)]
    assert len(random.unique()) > 20
    assert not set(random.tolist()) & {*tokenizer.all_special_ids, processor.pad_token_id}
    assert masked.dtype == ids.dtype


def test_the_view_depends_on_seed_epoch_batch_and_rank_alone(processor):
    images, ids = torch.rand(4, 3, 64, 64), tokens(processor)

    def differs(first, second):
        return all(not torch.equal(first[name], second[name]) for name in first)

    view = make_view(processor)(images, ids, 2, 7)
    again = make_view(processor)(images, ids, 2, 7)
    assert all(torch.equal(view[name], again[name]) for name in view)
    assert differs(view, make_view(processor)(images, ids, 3, 7))
    assert differs(view, make_view(processor)(images, ids, 2, 8))
    assert differs(view, make_view(processor, rank=1)(images, ids, 2, 7))
    assert differs(view, make_view(processor, seed=1)(images, ids, 2, 7))


class _Tokenizer:
    """CLIP's special tokens: the unknown token is the end token."""

    bos_token_id, eos_token_id, unk_token_id, pad_token_id, mask_token_id = 8, 9, 9, 9, None
    all_special_ids = (8, 9)

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": {"the": [3], "end": [9], "two": [1, 2]}[text]}

    def convert_ids_to_tokens(self, i):
        return f"<{i}>"


def test_the_mask_token_is_an_ordinary_word_or_that_of_the_tokenizer():
    tokenizer = _Tokenizer()
    assert mask_token_id(tokenizer, "the", [0, 8, 9]) == 3
    tokenizer.mask_token_id = 7
    assert mask_token_id(tokenizer, "end", [0, 7, 8, 9]) == 7
    tokenizer.mask_token_id = 9  # the end token
    assert mask_token_id(tokenizer, "the", [0, 8, 9]) == 3


@pytest.mark.parametrize(
    ("text", "got"), [("end", "the special token <9>"), ("two", "2 tokens"), ("the", "the special token <3>")]
)
def test_other_mask_tokens_are_refused(text, got):
    with pytest.raises(ValueError, match=f"distill_mask_token='{text}': expected .* one ordinary token.*got {got}"):
        mask_token_id(_Tokenizer(), text, [3, 8, 9] if text == "the" else [0, 8, 9])


def test_a_word_that_is_not_one_token_is_refused_before_training(root, tmp_path):
    with pytest.raises(ValueError, match=r"distill_mask_token='qzx': expected .*one ordinary token"):
        run(root, tmp_path / "run", distill_masked_view=True, distill_mask_token="qzx")
    assert not (tmp_path / "run").exists()


def masked_inputs():
    batch = inputs()
    images = batch["pixel_values"].clone()
    images[..., :16] = 0
    ids = batch["input_ids"].clone()
    ids[:, 2] = 5
    return {**batch, "masked_pixel_values": images, "masked_input_ids": ids}


def make_model():
    torch.manual_seed(0)
    config = tiny_config(dropout=0.0)
    config.vision_adapter.cross_attention_dropout = 0.0
    return DetrisForReferringSegmentation(config)


def statistics(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def test_the_loss_is_the_mean_of_both_views_and_statistics_are_those_of_the_clean_one():
    model = make_model()
    plain = copy.deepcopy(model)
    batch = masked_inputs()
    clean = {name: batch[name] for name in ("pixel_values", "input_ids", "labels")}
    out, expected = model(**batch), plain(**clean)
    assert torch.equal(out.logits, expected.logits)
    before = statistics(plain)
    assert all(torch.equal(value, before[name]) for name, value in statistics(model).items())
    masked = plain(batch["masked_pixel_values"], batch["masked_input_ids"])
    torch.testing.assert_close(
        out.loss,
        (segmentation_loss(out.logits, batch["labels"]) + distillation_loss(masked.logits, out.logits)) / 2,
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_half_those_of_each_view(checkpointing):
    model = make_model().double()
    plain = copy.deepcopy(model)
    batch = {name: value.double() if value.is_floating_point() else value for name, value in masked_inputs().items()}
    if checkpointing:
        model.gradient_checkpointing_enable()
    model(**batch).loss.backward()
    out = plain(batch["pixel_values"], batch["input_ids"])
    masked = plain(batch["masked_pixel_values"], batch["masked_input_ids"])
    (segmentation_loss(out.logits, batch["labels"]) / 2).backward()
    (distillation_loss(masked.logits, out.logits) / 2).backward()
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, other.grad, msg=name)


@pytest.mark.slow
def test_the_compiled_loss_of_both_views_equals_the_plain_one():
    model = make_model()
    compiled, batch = copy.deepcopy(model), masked_inputs()
    compiled.compile(backend="eager")
    torch.testing.assert_close(compiled(**batch).loss, model(**batch).loss)
    after = statistics(model)
    assert all(torch.equal(value, after[name]) for name, value in statistics(compiled).items())


def test_a_masked_view_of_another_shape_is_refused():
    model, batch = DetrisForReferringSegmentation(tiny_config()), masked_inputs()
    with pytest.raises(ValueError, match=r"masked_input_ids: expected a tensor of the shape of input_ids, .*got Non"):
        model(**{**batch, "masked_input_ids": None})
    with pytest.raises(ValueError, match="masked_pixel_values: expected a tensor of the shape of pixel_values"):
        model(**{**batch, "masked_pixel_values": batch["pixel_values"][:1]})


def run(root, folder, **changes):
    """Train with learned scales and Dice, as a new process would."""
    AcceleratorState._reset_state(reset_partial_state=True)
    rows = toy_run.load_rows(root)
    model = toy_run.load_model(root, 0.1, **MODEL_CHANGES)
    return train(model, toy_run.load_processor(model.config, rows[0]), *rows, toy_run.arguments(folder, **changes))


def test_a_run_with_all_of_it_is_bit_identical_when_resumed(root, tmp_path, monkeypatch):
    uninterrupted = run(root, tmp_path / "uninterrupted", **EVERYTHING)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(TrainingInterrupted):
            run(root, tmp_path / "stopped", **EVERYTHING)
    assert run(root, tmp_path / "stopped", resume="latest", **EVERYTHING) == uninterrupted
    for name in ("last", "best"):
        assert weights(tmp_path / "stopped" / name) == weights(tmp_path / "uninterrupted" / name)


@pytest.mark.parametrize("view", ["pixel_values", "masked_pixel_values"])
def test_a_step_is_skipped_if_the_loss_of_either_view_is_not_finite(root, tmp_path, monkeypatch, capsys, view):
    real, calls, seen = TrainingStep._model_inputs, [], []

    def model_inputs(step, batch, progress):
        calls.append(batch)
        result = real(step, batch, progress)
        model = step.accelerator.unwrap_model(step.model)
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {**result, view: result[view] * math.nan} if len(calls) == 2 else result

    monkeypatch.setattr(TrainingStep, "_model_inputs", model_inputs)
    run(root, tmp_path / "run", distill_masked_view=True, on_nan="skip")
    assert "1 batches were skipped because their loss was not finite" in capsys.readouterr().out
    assert all(torch.equal(seen[1][name], seen[2][name]) for name in seen[1])
    assert any(not torch.equal(seen[2][name], seen[3][name]) for name in seen[2])


def test_a_tokenizer_with_a_mask_token_uses_it(tmp_path):
    """BERT's tokenizer on a vocabulary of its own."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "circle"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert mask_token_id(tokenizer, "the", [*tokenizer.all_special_ids]) == 4
