"""The processor against the reference numbers, every kind of image, and the sentences CLIP's own tokenizer mends."""

import gzip
import importlib.metadata
import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoProcessor, AutoTokenizer, CLIPTokenizer

import detris_peft  # noqa: F401  registers the processor with AutoProcessor
from detris_peft.processing_detris import CLIP_MEAN, CLIP_STD, DetrisProcessor
from detris_peft.tokenization_detris import train_tokenizer

FIXTURE = Path(__file__).parent / "fixtures" / "tiny_processing.safetensors"
SENTENCES = [
    "the small red circle left of the blue square",
    "a big green triangle",
    "the man's red hat, 2nd from left!",
]
CASES = range(4)


@pytest.fixture(scope="module")
def reference():
    with safe_open(FIXTURE, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
        return SimpleNamespace(tensors=tensors, sentences=[file.metadata()[str(i)] for i in range(7)])


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SENTENCES, vocab_size=120)


@pytest.fixture(scope="module")
def processor(tokenizer):
    return DetrisProcessor(tokenizer, image_size=112)


@pytest.fixture(scope="module")
def clip_tokenizer():
    """CLIP's vocabulary, from the one package that carries it."""
    name = "bpe_simple_vocab_16e6.txt.gz"
    try:
        files = importlib.metadata.files("open_clip_torch") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("open_clip_torch is not installed: it carries CLIP's vocabulary")
    path = next(file for file in files if file.name == name).locate()
    lines = gzip.decompress(Path(str(path)).read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    units = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    symbols = [*units, *(unit + "</w>" for unit in units), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=merges)


def to_levels(pixel_values):
    """Normalized (3,h,w) → (3,h,w) in 0 … 255."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (pixel_values * std + mean) * 255


def random_image(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- Reference numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_letterbox_equals_the_reference(processor, reference, case):
    image, mask = (reference.tensors[f"{case}.{name}"].numpy() for name in ("image", "mask"))
    inputs = processor(images=image, masks=mask)
    expected = to_levels(reference.tensors[f"{case}.pixel_values"])
    assert (to_levels(inputs.pixel_values[0]) - expected).abs().max() <= 1 + 1e-3  # OpenCV's releases round apart
    assert (inputs.labels[0] - reference.tensors[f"{case}.labels"]).abs().max() <= 1 / 255
    assert inputs.target_sizes.tolist() == [list(image.shape[:2])]
    assert inputs.pixel_values.dtype == inputs.labels.dtype == torch.float32


def test_predictions_equal_the_reference(processor, reference):
    sizes = [reference.tensors[f"{case}.mask"].shape for case in CASES]
    outputs = SimpleNamespace(logits=torch.stack([reference.tensors[f"{case}.logits"] for case in CASES]))
    probabilities = processor.post_process_referring_segmentation(outputs, sizes, return_probabilities=True)
    masks = processor.post_process_referring_segmentation(outputs.logits.double(), torch.tensor(sizes))
    for case in CASES:
        assert (probabilities[case] - reference.tensors[f"{case}.probabilities"]).abs().max() <= 1e-3
        assert masks[case].dtype == torch.bool
        assert (masks[case] == reference.tensors[f"{case}.prediction"]).float().mean() >= 0.999


def test_input_ids_equal_the_reference(clip_tokenizer, reference):
    processor = DetrisProcessor(clip_tokenizer, image_size=112)
    assert torch.equal(processor(text=reference.sentences).input_ids, reference.tensors["input_ids"])


@pytest.mark.parametrize(
    ("odd", "plain"),
    [
        ("the “red” one", 'the "red" one'),
        ("man&rsquo;s hat", "man's hat"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("\ufb01re \uff54\uff52\uff55\uff43\uff4b", "fire truck"),
        ("cafe\u0301\u3000sign\t\n", "café sign"),
    ],
)
def test_sentences_are_mended_as_by_clip(clip_tokenizer, odd, plain):
    processor = DetrisProcessor(clip_tokenizer)
    assert torch.equal(processor(text=odd).input_ids, processor(text=plain).input_ids)
    assert processor.tokenizer.unk_token_id not in processor(text=plain).input_ids[0, 1 : len(plain.split()) + 1]


# --- Images --------------------------------------------------------------------------------------------------------


def assert_seen_as(processor, image, expected):
    """The processor sees `image` as it sees the uint8 RGB array `expected`, and Pillow has nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs = processor(images=image)
    assert torch.equal(inputs.pixel_values, processor(images=np.ascontiguousarray(expected)).pixel_values)
    assert inputs.target_sizes.tolist() == [list(expected.shape[:2])]


def as_rgb(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def test_arrays_of_every_layout(processor):
    rgb = random_image()
    grey = rgb[..., 0]
    wide = grey.astype(np.uint16) * 257
    for array in (grey, grey[..., None], wide, wide.astype(">u2"), wide[..., None]):
        assert_seen_as(processor, array, as_rgb(grey))
    assert_seen_as(processor, grey > 99, as_rgb((grey > 99).astype(np.uint8) * 255))
    assert_seen_as(processor, np.dstack([rgb, grey]), rgb)
    assert_seen_as(processor, rgb.astype(np.uint16) * 256, rgb)
    assert_seen_as(processor, rgb[::-1, ::-1], rgb[::-1, ::-1].copy())  # negative strides


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK", "YCbCr", "PA"])
def test_pil_modes(processor, mode):
    image = Image.fromarray(random_image()).convert("P" if mode == "PA" else mode).convert(mode)
    assert_seen_as(processor, image, np.asarray(image.convert("RGB")))


def test_alpha_is_dropped_not_composited(processor):
    rgb = random_image()
    transparent = np.dstack([rgb, np.zeros(rgb.shape[:2], np.uint8)])
    assert_seen_as(processor, Image.fromarray(transparent), rgb)


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_palette_with_transparency_keeps_its_colors(processor, transparency, tmp_path):
    image = Image.fromarray(random_image()).convert("P")
    expected = np.asarray(image.convert("RGB"))
    image.save(tmp_path / "palette.png", transparency=transparency)
    assert_seen_as(processor, Image.open(tmp_path / "palette.png"), expected)


def test_sixteen_bit_png_is_scaled_not_clipped(processor, tmp_path):
    grey = random_image()[..., 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "wide.png")
    with Image.open(tmp_path / "wide.png") as image:
        assert_seen_as(processor, image, as_rgb(grey))
        assert_seen_as(processor, Image.fromarray(np.asarray(image, dtype=np.int32)), as_rgb(grey))  # mode "I"


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (3, lambda a: np.rot90(a, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (8, np.rot90),
        (5, lambda a: a.transpose(1, 0, 2)),
    ],
)
def test_exif_rotation(processor, orientation, turn, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(random_image()).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        expected = turn(random_image())
        assert_seen_as(processor, image, expected)
        processor(images=image, masks=np.zeros(expected.shape[:2], bool))  # the mask is the rotated image's
        if expected.shape != random_image().shape:
            with pytest.raises(ValueError, match=r"masks\[0\] has shape \(40, 60\), its image \(60, 40\) after EXIF"):
                processor(images=image, masks=np.zeros((40, 60), bool))


def test_border_is_the_mean_and_label_zero(processor):
    inputs = processor(images=np.full((10, 100, 3), 255, np.uint8), masks=np.ones((10, 100), bool))
    assert inputs.pixel_values[0, :, 0].abs().max() < 0.01  # the mean, normalized, but for its rounding to 8 bits
    assert inputs.labels[0, 0].max() == 0
    assert inputs.labels[0, 56, :-1].min() == 1  # the last column is soft: the method leaves out half a pixel


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((3, 20, 20), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_arrays_that_are_no_image_are_refused(processor, image):
    with pytest.raises(ValueError, match=r"images\[1\]"):
        processor(images=[random_image(), image])


@pytest.mark.parametrize("image", ["photo.jpg", torch.zeros(3, 4, 4), None, 7])
def test_things_that_are_no_image_are_refused(processor, image):
    with pytest.raises(TypeError, match=r"images\[1\] is of type"):
        processor(images=[random_image(), image])


def test_float_pil_is_refused(processor):
    for image in (Image.fromarray(np.zeros((4, 4), np.float32)), Image.fromarray(np.full((4, 4), 1 << 20, np.int32))):
        with pytest.raises(ValueError, match="whose range is unknown"):
            processor(images=image)


# --- Masks -----------------------------------------------------------------------------------------------------------


def test_masks_of_every_kind_give_the_same_labels(processor):
    mask = random_image()[..., 0] > 128
    expected = processor(images=random_image(), masks=mask).labels
    assert ((expected > 0) & (expected < 1)).any()  # soft at warped edges
    index = Image.fromarray(mask.astype(np.uint8), mode="P")
    same = [mask.astype(np.uint8), mask * 255, mask.astype(np.float32), torch.from_numpy(mask), Image.fromarray(mask)]
    for other in [*same, Image.fromarray(mask.astype(np.uint8) * 7), index]:
        assert torch.equal(processor(images=random_image(), masks=other).labels, expected)


@pytest.mark.parametrize("keep_aspect_ratio", [False, True])
@pytest.mark.parametrize("size", [(90, 140), (150, 60), (37, 223), (480, 640), (112, 112)])
def test_masks_survive_the_way_there_and_back(tokenizer, size, keep_aspect_ratio):
    processor = DetrisProcessor(tokenizer, image_size=112, keep_aspect_ratio=keep_aspect_ratio)
    rows, columns = np.ogrid[: size[0], : size[1]]
    mask = (rows - size[0] * 0.4) ** 2 + (columns - size[1] * 0.6) ** 2 < (min(size) * 0.3) ** 2
    inputs = processor(images=np.zeros((*size, 3), np.uint8), masks=mask)
    logits = 20 * inputs.labels[:, None] - 10
    (prediction,) = processor.post_process_referring_segmentation(logits, inputs.target_sizes, threshold=0.5)
    prediction = prediction.numpy()
    assert prediction.shape == size
    assert (prediction & mask).sum() / (prediction | mask).sum() > 0.93


def test_threshold(processor):
    logits = torch.logit(torch.full((1, 1, 8, 8), 0.4))
    inside = np.s_[5:-5, 5:-5]
    for threshold, expected in ((None, True), (0.35, True), (0.45, False), (0.0, True)):
        (mask,) = processor.post_process_referring_segmentation(logits, [(30, 30)], threshold)
        assert (mask[inside] == expected).all()
    with pytest.raises(ValueError, match="got 1 logit maps and 2 target_sizes"):
        processor.post_process_referring_segmentation(logits, [(30, 30), (30, 30)])


def test_half_precision_logits(processor):
    logits = torch.randn(1, 1, 8, 8).bfloat16()
    (mask,) = processor.post_process_referring_segmentation(logits, [(30, 40)])
    assert mask.shape == (30, 40)


def test_keep_aspect_ratio_trims_the_border_only(tokenizer):
    letterbox = DetrisProcessor(tokenizer, image_size=112)
    trimmed = DetrisProcessor(tokenizer, image_size=112, keep_aspect_ratio=True, patch_size=14)
    image = random_image(56, 112)
    pixels = trimmed(images=image).pixel_values
    assert pixels.shape == (1, 3, 56, 112)
    assert torch.equal(pixels, letterbox(images=image).pixel_values[:, :, 28:84])
    assert trimmed(images=[image, random_image(112, 50)]).pixel_values.shape == (2, 3, 112, 112)
    assert trimmed(images=[image, random_image(60, 112)]).pixel_values.shape == (2, 3, 70, 112)
    assert trimmed(images=random_image(426, 640)).pixel_values.shape == (1, 3, 84, 112)
    assert trimmed.canvas_size([(25, 50)]) == (56, 112)  # 25 · 2.24 is 56.00000000000001 in floating point


# --- Sentences and batches -------------------------------------------------------------------------------------------


def test_long_sentences_are_cut_and_keep_the_end_token(tokenizer):
    ids = DetrisProcessor(tokenizer, max_text_length=5, pad_token_id=7)(text=["red " * 30, "red"]).input_ids
    assert ids.shape == (2, 5)
    assert ids[0, -1] == tokenizer.eos_token_id
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert ids[1, 3:].tolist() == [7, 7]


@pytest.mark.parametrize("sentence", ["", "   ", "\t\n", "&nbsp;"])
def test_empty_sentences_are_refused_by_index(processor, sentence):
    with pytest.raises(ValueError, match=r"text\[1\] is empty or only spaces"):
        processor(text=["red", sentence])


def test_sentences_of_another_type_are_refused(processor):
    with pytest.raises(TypeError, match=r"text\[0\] is of type int"):
        processor(text=[3])


def test_single_items_and_lists_agree(processor):
    single = processor(images=Image.fromarray(random_image()), text="red", masks=np.ones((40, 60), bool))
    batch = processor(images=[random_image()] * 2, text=("red", "red"), masks=[np.ones((40, 60), bool)] * 2)
    assert set(single) == {"pixel_values", "input_ids", "labels", "target_sizes"}
    for name, value in single.items():
        assert torch.equal(batch[name], value.expand_as(batch[name]))


def test_parts_may_be_left_out(processor):
    assert set(processor(images=random_image())) == {"pixel_values", "target_sizes"}
    assert set(processor(text="red")) == {"input_ids"}
    assert isinstance(processor(text="red", return_tensors="np")["input_ids"], np.ndarray)


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"images": []},
        {"images": [random_image()], "text": ["red", "blue"]},
        {"images": [random_image()] * 2, "text": "red"},
        {"images": [random_image()] * 2, "masks": np.ones((40, 60))},
        {"text": "red", "masks": np.ones((40, 60))},
        {"images": random_image(), "masks": np.ones((60, 40))},
        {"images": random_image(), "masks": np.ones((40, 60, 1))},
    ],
)
def test_parts_that_do_not_match_are_refused(processor, inputs):
    with pytest.raises(ValueError, match="pass "):
        processor(**inputs)


# --- Saving, and the tokenizer of one's own --------------------------------------------------------------------------


def test_round_trip_through_a_folder(tokenizer, tmp_path):
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


def test_trained_tokenizer_has_clips_layout(tokenizer):
    assert len(tokenizer) == 120
    assert tokenizer.convert_ids_to_tokens([0, 118, 119]) == ["!", "<|startoftext|>", "<|endoftext|>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (118, 119)
    ids = tokenizer(SENTENCES)["input_ids"]
    assert all(max(row) == row[-1] == 119 and 0 not in row and tokenizer.unk_token_id not in row for row in ids)
    assert len(tokenizer("the red")["input_ids"]) == 4  # frequent words are one token each
    assert tokenizer.unk_token_id in tokenizer("zoë")["input_ids"]


def test_trained_tokenizer_is_deterministic_and_saved_whole(tokenizer, tmp_path):
    again = train_tokenizer(reversed(SENTENCES), vocab_size=120)  # nor does the order of sentences matter
    again.save_pretrained(tmp_path)
    for other in (again, CLIPTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert other.get_vocab() == tokenizer.get_vocab()
        for sentence in [*SENTENCES, "zoë & the triangles!!"]:
            assert other(sentence)["input_ids"] == tokenizer(sentence)["input_ids"]


def test_tokenizer_of_few_words_still_ends_at_the_highest_id():
    tokenizer = train_tokenizer(["red"], vocab_size=50)
    ids = tokenizer("red")["input_ids"]
    assert (ids[0], ids[-1], len(ids)) == (48, 49, 3)
    with pytest.raises(ValueError, match=r"vocab_size 9 is too small: these sentences' characters need 10"):
        train_tokenizer(["red"], vocab_size=9)
    assert train_tokenizer(["red"], vocab_size=10).eos_token_id == 9
    with pytest.raises(ValueError, match=r"sentences\[1\] is empty"):
        train_tokenizer(["red", " "], vocab_size=50)


@pytest.mark.parametrize("lacking", ["processor_config.json", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_refused(tmp_path, lacking):
    """transformers would fill in: a image size that the model was not trained with."""
    DetrisProcessor(train_tokenizer(["the red circle"], 60), image_size=56).save_pretrained(tmp_path)
    (tmp_path / lacking).unlink()
    with pytest.raises(FileNotFoundError, match=lacking):
        DetrisProcessor.from_pretrained(tmp_path)


# --- Images that a JPEG decoder made smaller -----------------------------------------------------------------------


def test_an_original_size_puts_a_smaller_image_in_the_whole_ones_place(processor):
    """A pixel of the smaller one stands for a square of pixels, in whose middle it lies: a ramp shows a shift."""
    ramp = np.broadcast_to(np.arange(240, dtype=np.uint8)[None, :, None], (120, 240, 3))
    half = np.broadcast_to(np.arange(120, dtype=np.uint8)[None, :, None] * 2, (60, 120, 3)).copy()  # 0.5 too dark
    whole = to_levels(processor(images=np.ascontiguousarray(ramp)).pixel_values[0])
    small = processor(images=half, original_sizes=[(120, 240)], masks=np.ones((120, 240)))
    difference = (whole - to_levels(small.pixel_values[0]))[:, 32:-32, 4:-4]
    assert abs(float(difference.mean()) - 0.5) < 0.1
    assert small.target_sizes.tolist() == [[120, 240]]
    assert small.labels.shape == (1, 112, 112)


def test_an_original_size_that_no_decoder_could_have_made_is_refused(processor):
    with pytest.raises(ValueError, match=r"images\[0\] has shape \(40, 60\), which is neither its original size"):
        processor(images=random_image(), original_sizes=[(100, 60)])
    with pytest.raises(ValueError, match="original_sizes came without images"):
        processor(text=["the red circle"], original_sizes=[(40, 60)])
    with pytest.raises(ValueError, match="one mask per image"):
        processor(images=[random_image(), random_image()], original_sizes=[(40, 60)])


def test_whole_images_do_not_depend_on_their_original_size_being_said(processor):
    images = [random_image(40, 60), random_image(300, 200), random_image(7, 90)]
    sizes = [image.shape[:2] for image in images]
    batch = processor(images=images, original_sizes=sizes, masks=[image[..., 0] > 128 for image in images])
    assert torch.equal(batch.pixel_values, processor(images=images).pixel_values)
    for image, pixels, label in zip(images, batch.pixel_values, batch.labels, strict=True):
        alone = processor(images=image, masks=image[..., 0] > 128)
        assert torch.equal(alone.pixel_values[0], pixels)
        assert torch.equal(alone.labels[0], label)


@pytest.mark.parametrize("size", [(40, 60), (113, 300), (900, 1000), (1500, 20)])
def test_a_mask_is_visible_exactly_if_its_label_is_not_blank(processor, size):
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(40):
        mask = np.zeros(size, dtype=np.uint8)
        top, left = (int(rng.integers(side)) for side in size)
        mask[top : top + int(rng.integers(1, 14)), left : left + int(rng.integers(1, 14))] = 1
        if rng.random() < 0.5:  # full of holes, or far apart: a large box says little
            mask &= (rng.random(size) < 0.1).astype(np.uint8)
            mask[tuple(int(rng.integers(side)) for side in size)] = 1
        label = processor(images=np.zeros((*size, 3), np.uint8), masks=mask).labels
        assert processor.is_visible(mask) == bool(label.any())
        outcomes.add(bool(label.any()))
    assert outcomes == ({True, False} if max(size) >= 300 else {True})
