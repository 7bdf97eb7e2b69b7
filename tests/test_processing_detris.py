"""Tests of the processor: images with sentences, and saving and loading."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, BertJapaneseTokenizer, BertTokenizerFast

from detris_peft import DetrisConfig, DetrisImageProcessor, DetrisProcessor
from detris_peft.defaults import CLIP_MEAN, CLIP_STD, IMAGE_SIZE, MASK_THRESHOLD, MAX_TEXT_LENGTH
from detris_peft.processing_detris import check_processor
from detris_peft.tokenization_detris import train_tokenizer
from tests.helpers.reference import FIXTURES
from tests.helpers.tiny_models import text_encoder, tiny_config

OLD_CHECKPOINT = FIXTURES / "checkpoint_0.1.0.dev0"
SENTENCES = [
    "the small red circle left of the blue square",
    "a big green triangle",
    "the man's red hat, 2nd from left!",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SENTENCES, vocab_size=120)


@pytest.fixture(scope="module")
def processor(tokenizer):
    return DetrisProcessor(tokenizer, image_size=112)


def random_image(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- Sentences and batches -------------------------------------------------------------------------------------------


def test_long_sentences_are_truncated_and_keep_the_end_token(tokenizer):
    ids = DetrisProcessor(tokenizer, max_text_length=5, pad_token_id=7)(text=["red " * 30, "red"]).input_ids
    assert ids.shape == (2, 5)
    assert ids[0, -1] == tokenizer.eos_token_id
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert ids[1, 3:].tolist() == [7, 7]


def test_an_image_with_several_sentences_is_letterboxed_once(processor, monkeypatch):
    images = [random_image(seed=0), random_image(50, 30, seed=1)]
    expected = processor(images=[images[0], images[0], images[1]], text=SENTENCES)
    warped = []
    warp = DetrisImageProcessor._warp_image
    monkeypatch.setattr(
        DetrisImageProcessor, "_warp_image", lambda *args, **kwargs: warped.append(1) or warp(*args, **kwargs)
    )
    inputs = processor(images=images, text=[SENTENCES[:2], SENTENCES[2]])
    assert len(warped) == 2
    for name, value in expected.items():
        assert torch.equal(inputs[name], value)
    single = processor(images=images[0], text=SENTENCES[:2])
    assert len(warped) == 3
    assert torch.equal(single.pixel_values, expected.pixel_values[:2])
    assert torch.equal(single.input_ids, expected.input_ids[:2])
    masks = [np.arange(2400).reshape(40, 60) < 900, np.arange(2400).reshape(40, 60) > 900]
    labels = processor(images=images[0], text=SENTENCES[:2], masks=masks).labels
    assert torch.equal(labels, processor(images=[images[0]] * 2, masks=masks).labels)


@pytest.mark.parametrize("text", [["a"], [["a"], ["b"], ["c"]], [["a"], []]])
def test_several_images_need_an_entry_of_text_each(processor, text):
    with pytest.raises(ValueError, match="expected"):
        processor(images=[random_image()] * 2, text=text)


@pytest.mark.parametrize("sentence", ["", "   ", "\t\n", "&nbsp;"])
def test_empty_sentences_are_rejected_with_their_index(processor, sentence):
    with pytest.raises(ValueError, match=r"text\[1\]: expected a sentence, got only whitespace"):
        processor(text=["red", sentence])


def test_sentences_of_another_type_are_rejected(processor):
    with pytest.raises(TypeError, match=r"text\[0\]: expected a sentence \(str\), got int"):
        processor(text=[3])


def test_single_items_and_lists_give_the_same_inputs(processor):
    single = processor(images=Image.fromarray(random_image()), text="red", masks=np.ones((40, 60), bool))
    batch = processor(images=[random_image()] * 2, text=("red", "red"), masks=[np.ones((40, 60), bool)] * 2)
    assert set(single) == {"pixel_values", "input_ids", "labels", "target_sizes"}
    for name, value in single.items():
        assert torch.equal(batch[name], value.expand_as(batch[name]))


def test_images_or_text_may_be_omitted(processor):
    assert set(processor(images=random_image())) == {"pixel_values", "target_sizes"}
    assert set(processor(text="red")) == {"input_ids"}
    assert isinstance(processor(text="red", return_tensors="np")["input_ids"], np.ndarray)


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"images": []},
        {"images": [random_image()] * 2, "text": ["red", "blue", "green"]},
        {"images": random_image(), "text": ["red", "blue"], "original_sizes": [(40, 60)] * 2},
        {"images": random_image(), "text": ["red", "blue"], "masks": np.ones((40, 60))},
        {"images": [random_image()] * 2, "text": "red"},
        {"images": [random_image()] * 2, "masks": np.ones((40, 60))},
        {"text": "red", "masks": np.ones((40, 60))},
        {"text": "red", "original_sizes": [(40, 60)]},
        {"images": random_image(), "masks": np.ones((60, 40))},
        {"images": random_image(), "masks": np.ones((40, 60, 1))},
    ],
)
def test_inputs_that_do_not_match_are_rejected(processor, inputs):
    with pytest.raises(ValueError, match="pass "):
        processor(**inputs)


# --- Fields ----------------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_package(tokenizer):
    processor = DetrisProcessor(tokenizer)
    assert (processor.image_size, processor.max_text_length) == (IMAGE_SIZE, MAX_TEXT_LENGTH) == (448, 17)
    assert processor.mask_threshold == MASK_THRESHOLD == 0.35
    assert (processor.image_mean, processor.image_std) == ([*CLIP_MEAN], [*CLIP_STD])
    config = DetrisConfig()
    config.text_config.eos_token_id = tokenizer.eos_token_id
    assert DetrisProcessor.from_config(config, tokenizer).to_dict() == processor.to_dict()


def test_fields_of_the_image_processor_are_attributes(tokenizer):
    processor = DetrisProcessor(tokenizer, image_size=112, patch_size=7)
    processor.keep_aspect_ratio = True
    assert processor.image_processor.keep_aspect_ratio
    assert processor(images=random_image(56, 112)).pixel_values.shape == (1, 3, 56, 112)
    with pytest.raises(TypeError, match="img_size"):
        DetrisProcessor(tokenizer, img_size=112)


def test_processor_is_composed_of_an_image_processor_and_a_tokenizer(tokenizer):
    image_processor = DetrisImageProcessor(image_size=112)
    processor = DetrisProcessor(image_processor=image_processor, tokenizer=tokenizer)
    assert (processor.image_processor, processor.tokenizer) == (image_processor, tokenizer)
    expected, got = image_processor(random_image()), processor(images=random_image())
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    other = DetrisProcessor(tokenizer, image_processor, image_size=56)
    assert (other.image_size, image_processor.image_size) == (56, 112)


# --- Saving and loading ----------------------------------------------------------------------------------------------


def test_processor_round_trips_through_a_folder(tokenizer, tmp_path):
    fields = {"image_size": 70, "max_text_length": 9, "mask_threshold": 0.4, "pad_token_id": 3, "patch_size": 7}
    fields |= {"keep_aspect_ratio": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}
    saved = DetrisProcessor(tokenizer, **fields)
    saved.save_pretrained(tmp_path)
    expected = saved(images=random_image(), text=SENTENCES[0])
    for loader in (DetrisProcessor, AutoProcessor):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is DetrisProcessor
        assert {name: getattr(loaded, name) for name in fields} == fields
        for name, value in loaded(images=random_image(), text=SENTENCES[0]).items():
            assert torch.equal(value, expected[name])
    assert json.loads((tmp_path / "processor_config.json").read_text())["processor_class"] == "DetrisProcessor"
    assert DetrisProcessor.from_pretrained(tmp_path, image_size=84).image_size == 84


def test_image_processor_loads_from_the_folder_of_the_processor(tokenizer, tmp_path):
    saved = DetrisProcessor(tokenizer, image_size=70, mask_threshold=0.4, keep_aspect_ratio=True, patch_size=7)
    saved.save_pretrained(tmp_path)
    for loader in (DetrisImageProcessor, AutoImageProcessor):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is DetrisImageProcessor
        assert loaded.to_dict() == saved.image_processor.to_dict()
        assert torch.equal(loaded(random_image()).pixel_values, saved(images=random_image()).pixel_values)
    assert AutoImageProcessor.from_pretrained(tmp_path, image_size=84).image_size == 84


@pytest.mark.parametrize("loader", [DetrisProcessor, AutoProcessor])
def test_folders_of_the_previous_version_load(loader, tmp_path):
    """In 0.1.0.dev0 the fields of the image processor were at the top level of processor_config.json."""
    old = loader.from_pretrained(OLD_CHECKPOINT)
    assert type(old) is DetrisProcessor
    assert (old.image_size, old.max_text_length, old.mask_threshold, old.pad_token_id) == (56, 9, 0.35, 0)
    assert (old.keep_aspect_ratio, old.patch_size) == (False, 14)
    assert (old.image_mean, old.image_std) == ([*CLIP_MEAN], [*CLIP_STD])
    assert loader.from_pretrained(OLD_CHECKPOINT, image_size=84).image_size == 84

    old.save_pretrained(tmp_path)
    new = loader.from_pretrained(tmp_path)
    assert new.to_dict() == old.to_dict()
    expected, got = (p(images=random_image(), text="the red circle") for p in (old, new))
    assert all(torch.equal(got[name], value) for name, value in expected.items())


@pytest.mark.parametrize("missing", ["processor_config.json", "tokenizer.json"])
def test_folders_without_a_processor_file_are_rejected(tmp_path, missing):
    """transformers would use default values, such as an image size that the model was not trained with."""
    DetrisProcessor(train_tokenizer(["the red circle"], 60), image_size=56).save_pretrained(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        DetrisProcessor.from_pretrained(tmp_path)


def test_old_folders_without_a_processor_file_are_rejected(tmp_path):
    shutil.copy(OLD_CHECKPOINT / "processor_config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        DetrisProcessor.from_pretrained(tmp_path)


def test_a_processor_with_a_slow_tokenizer_can_be_loaded(tmp_path):
    """Its vocabulary is in vocab.txt; there is no tokenizer.json."""
    (tmp_path / "words.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc"]))
    slow = BertJapaneseTokenizer(
        str(tmp_path / "words.txt"), word_tokenizer_type="basic", subword_tokenizer_type="character"
    )
    DetrisProcessor(slow, image_size=56).save_pretrained(tmp_path / "saved")
    loaded = DetrisProcessor.from_pretrained(tmp_path / "saved")
    assert loaded(text="a b")["input_ids"][0, :5].tolist() == [2, 5, 6, 3, 0]


def test_configs_of_other_processors_are_rejected(tokenizer, tmp_path):
    DetrisProcessor(tokenizer).save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "DetrisProcessor"}')
    with pytest.raises(OSError, match="image processor"):
        DetrisProcessor.from_pretrained(tmp_path)


def edited_config(folder, tokenizer, **changes):
    """Save a processor, and change fields of processor_config.json; None removes a field."""
    DetrisProcessor(tokenizer, image_size=56).save_pretrained(folder)
    file = folder / "processor_config.json"
    content = json.loads(file.read_text())
    for name, value in changes.items():
        fields = content["image_processor"] if name in content["image_processor"] else content
        fields[name] = value
        if value is None:
            del fields[name]
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("loader", [DetrisProcessor, AutoProcessor])
def test_an_empty_processor_config_is_refused(loader, tokenizer, tmp_path):
    edited_config(tmp_path, tokenizer)
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(OSError, match=r"processor_config\.json: expected image_size, .*got none"):
        DetrisProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image_size", None, "expected image_size, .*, got none"),
        ("max_text_length", None, "expected max_text_length, .*, got none"),
        ("image_size", "56", "image_size: expected int, .* got '56'"),
        ("image_size", 10**9, "image_size: expected int, 1 to 8192 pixels, got 1000000000"),
        ("image_std", [0.2, 0.0, 0.2], r"image_std: expected .* three above 0, got \[0.2, 0.0, 0.2\]"),
        ("image_mean", [0.2], r"image_mean: expected .* three from 0 to 1"),
        ("mask_threshold", 1.5, "mask_threshold: expected float, above 0 and below 1, got 1.5"),
        ("pad_token_id", [0], r"pad_token_id: expected int, at least 0, got \[0\]"),
        ("keep_aspect_ratio", 1, "keep_aspect_ratio: expected bool, True or False, got 1"),
    ],
)
def test_missing_and_invalid_fields_are_refused(tokenizer, tmp_path, name, value, message):
    edited_config(tmp_path, tokenizer, **{name: value})
    with pytest.raises(OSError, match=message) as caught:
        DetrisProcessor.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (name, content)
        for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json")
        for content in ("{", "[]", '{"version": 3}', "")
        if (name, content) != ("tokenizer_config.json", '{"version": 3}')  # valid: all of its fields are optional
    ],
)
def test_damaged_files_are_refused_in_one_line(tokenizer, tmp_path, name, content):
    DetrisProcessor(tokenizer, image_size=56).save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises((OSError, ValueError)) as caught:
        DetrisProcessor.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_tokenizer_with_code_does_not_ask_whether_to_run_it(tokenizer, tmp_path, monkeypatch):
    DetrisProcessor(tokenizer, image_size=56).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    content = {**json.loads(file.read_text()), "auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}
    file.write_text(json.dumps({**content, "tokenizer_class": "UnknownTokenizer"}))
    (tmp_path / "code.py").write_text("raise SystemExit('executed')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on standard input"))
    with pytest.raises(ValueError, match=r"the processor cannot be loaded .*custom code") as caught:
        DetrisProcessor.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


# --- Model and processor ---------------------------------------------------------------------------------------------


def matching_config(tokenizer, **changes):
    return tiny_config(
        text_config=text_encoder(vocab_size=120, eos_token_id=tokenizer.eos_token_id, bos_token_id=118).config,
        **changes,
    )


def test_a_processor_that_belongs_to_the_model_is_accepted(tokenizer):
    config = matching_config(tokenizer)
    check_processor(config, DetrisProcessor.from_config(config, tokenizer))


@pytest.mark.parametrize("changes", [{"image_size": 96}, {"max_text_length": 8}, {"pad_token_id": 3}])
def test_a_processor_of_another_model_is_refused(tokenizer, changes):
    config = matching_config(tokenizer)
    ((name, value),) = changes.items()
    processor = DetrisProcessor.from_config(matching_config(tokenizer, **changes), tokenizer)
    with pytest.raises(ValueError, match=rf"processor: expected {name}={getattr(config, name)}, .*, got {value}; use"):
        check_processor(config, processor)


def test_a_tokenizer_of_another_text_encoder_is_refused(tokenizer):
    config = matching_config(tokenizer)
    with pytest.raises(ValueError, match=r"expected at most 100 tokens, .* got 120; pass the text encoder's own"):
        DetrisProcessor.from_config(tiny_config(text_config=text_encoder(vocab_size=100).config), tokenizer)
    config.text_config.eos_token_id = 50
    with pytest.raises(ValueError, match=r"expected eos_token_id=50, .*, got 119; .*correct eos_token_id"):
        DetrisProcessor.from_config(config, tokenizer)


def test_the_legacy_id_of_the_end_token_is_accepted_with_the_tokenizer_of_the_vocabulary(tokenizer):
    """2 is the `eos_token_id` in the configs of OpenAI's CLIP."""
    config = matching_config(tokenizer)
    config.text_config.eos_token_id = 2
    DetrisProcessor.from_config(config, tokenizer)
    smaller = train_tokenizer(SENTENCES, vocab_size=100)
    with pytest.raises(ValueError, match=r"expected eos_token_id=119, .*, got 99"):
        DetrisProcessor.from_config(config, smaller)
    config.text_config.vocab_size = 121  # resized for one added token
    extended = train_tokenizer(SENTENCES, vocab_size=120)
    extended.add_tokens(["<object>"])
    DetrisProcessor.from_config(config, extended)
    config.pad_token_id = 119
    with pytest.raises(ValueError, match="pad_token_id=119: expected another id than that of the end token"):
        DetrisProcessor.from_config(config, extended)


def test_padding_of_another_tokenizer_is_refused():
    """The model masks the padding of BERT by its id: with another id, it would mask a word or attend to padding."""
    tokenizer = BertTokenizerFast(vocab={w: i for i, w in enumerate(["[UNK]", "[CLS]", "[SEP]", "a", "[PAD]"])})
    config = tiny_config().with_backbones(tiny_config().vision_config, text_encoder("bert").config)
    with pytest.raises(ValueError, match="expected pad_token_id=0, as in the model's config, got 4"):
        DetrisProcessor.from_config(config, tokenizer)
