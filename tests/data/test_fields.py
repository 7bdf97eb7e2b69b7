"""Any value of a field is either parsed or rejected with a BadRowError: no other error, no mask without foreground."""

import io

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detris_peft.data.errors import BAD_KINDS, BadRowError, MissingImageError, collect_notices, short
from detris_peft.data.fields import read_box, read_id, read_mask, read_sentences, sentence_ids, text_id, upright_size
from detris_peft.data.masks import decode_mask, encode_mask
from detris_peft.text_cleaning import clean_text

HEIGHT, WIDTH = 6, 8
NUMBERS = (
    st.integers(-20, 20) | st.floats(-20, 20) | st.sampled_from([10**30, 10**4000, float("nan"), float("inf"), True])
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=6) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.dictionaries(st.sampled_from(["size", "counts", "path", "bytes", "sent", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(VALUES | st.lists(NUMBERS, min_size=4, max_size=8), st.booleans())
def test_any_value_is_a_mask_with_foreground_or_a_bad_row(value, fractions):
    for read in (read_mask, read_box):
        mask, refusal = None, None
        try:
            mask = read(value, HEIGHT, WIDTH, "here: 'mask'", fractions=fractions)
        except BadRowError as error:
            refusal = error
        if mask is None:
            assert refusal.kind in BAD_KINDS
            assert str(refusal).startswith("here: 'mask'")
            assert len(str(refusal).splitlines()) == 1
        else:
            assert decode_mask(mask).shape == (HEIGHT, WIDTH)
            assert decode_mask(mask).any()


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_any_value_is_sentences_or_an_id_or_a_bad_row(value):
    try:
        sentences = read_sentences(value, "here")
    except BadRowError:
        pass
    else:
        assert sentences
        assert all(isinstance(sentence, str) and clean_text(sentence) for sentence in sentences)
    try:
        number = read_id(value, -1, "here")
    except BadRowError:
        pass
    else:
        assert all(-(2**63) <= one < 2**63 for one in (number, *sentence_ids(number, 3)))


def test_numeric_ids_are_kept_and_text_ids_are_hashed():
    assert [read_id(value, 4, "") for value in (7, "007", 7.0, None)] == [7, 7, 7, 4]
    assert read_id("a7", 4, "") == text_id("a7") != text_id("a8")
    assert text_id("a7") == 161058116285104  # the same on every machine


@pytest.mark.parametrize("value", [3.5, float("nan"), 10**5000, "", True, [], "half \ud83d", b"7"], ids=short)
def test_impossible_ids_are_bad_rows(value):
    with pytest.raises(BadRowError, match=r"^here: expected .*; fix the "):
        read_id(value, 4, "here")


@pytest.mark.parametrize(
    "sentence", ["&nbsp;", "\u200b\ufeff", "\u200e", "  ", "\ud83d", "red \udc00 circle", 7, None], ids=ascii
)
def test_sentences_that_the_tokenizer_cannot_read_are_bad_rows(sentence):
    for value in (sentence, ["the red circle", sentence], [{"sent": sentence}]):
        with pytest.raises(
            BadRowError, match=r"^here: expected .*; (write or remove it|fix the text|add a sentence)"
        ) as e:
            read_sentences(value, "here")
        assert str(e.value).isprintable()


def test_values_of_any_size_are_shown_briefly():
    nested = [1] * 1000
    for _ in range(40):
        nested = [nested] * 1000  # its complete repr would need 10**120 characters
    for value in (nested, "a" * 10**6, 10**5000, [10**5000], {"a": b"x" * 10**6}, float("nan")):
        assert len(short(value)) <= 60
    assert short(None) == "nothing"
    assert short("a red circle") == "'a red circle'"


def header(size=(WIDTH, HEIGHT), kind="JPEG", turn=None):
    exif = Image.Exif()
    if turn:
        exif[0x0112] = turn
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind, exif=exif)
    return {"bytes": file.getvalue(), "path": None}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", [None, 1, 3, 6, 8])
def test_upright_size_equals_the_size_that_datasets_decodes(kind, turn):
    decoded = datasets.Image().decode_example(header(kind=kind, turn=turn))
    assert upright_size(header(kind=kind, turn=turn), "") == (decoded.height, decoded.width)


def test_upright_size_reads_the_header_alone():
    complete = header((2000, 1500))
    truncated = {"bytes": complete["bytes"][:700], "path": None}
    assert upright_size(truncated, "") == (1500, 2000)
    with pytest.raises(MissingImageError, match=r"here: none\.jpg is missing"):
        upright_size({"path": "none.jpg", "bytes": None}, "here")
    for broken in ({"bytes": b"x", "path": "x.jpg"}, {"bytes": None, "path": None}, {"bytes": b"", "path": "."}):
        with pytest.raises(BadRowError) as caught:
            upright_size(broken, "here")
        assert caught.value.kind == "image_damaged"


def test_boxes_become_rectangular_masks_within_the_image():
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[1:4, 2:6] = 1
    for box, corners in (([2, 1, 4, 3], False), ([2, 1, 6, 4], True)):
        np.testing.assert_array_equal(decode_mask(read_box(box, HEIGHT, WIDTH, "", corners=corners)), expected)
    assert decode_mask(read_box([6, 4, 3, 3], HEIGHT, WIDTH, "")).sum() == 4  # one pixel outside is tolerated
    for box, kind in (
        ([6, 4, 9, 9], "mask_malformed"),
        ([20, 1, 3, 3], "mask_out_of_frame"),
        ([1, 1, 0, 3], "mask_empty"),
    ):
        with pytest.raises(BadRowError) as caught:
            read_box(box, HEIGHT, WIDTH, "")
        assert caught.value.kind == kind


def mask_file(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return {"bytes": file.getvalue(), "path": None}


def test_mask_images_give_notices():
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[1:3, 2:5] = 1
    labels = pixels.copy()
    labels[4, 4] = 2
    with collect_notices() as notices:
        read_mask(mask_file(Image.fromarray(pixels)), HEIGHT, WIDTH, "here")
        assert not notices
        read_mask(mask_file(Image.fromarray(labels)), HEIGHT, WIDTH, "here")
        read_mask(Image.fromarray(255 * (1 - pixels)), HEIGHT, WIDTH, "here")
    assert [kind for kind, _ in notices] == ["mask_of_several", "mask_on_white"]
    assert notices[0][1].startswith("here: the mask has 2 different values")
    assert "88% of the image; if its background is white, invert it" in notices[1][1]


def test_lossy_turned_and_missing_mask_images_are_bad_rows(tmp_path):
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[1:3, 2:5] = 255
    mask = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = read_mask(mask_file(mask, exif=exif), HEIGHT, WIDTH, "")
    np.testing.assert_array_equal(decode_mask(turned), pixels[::-1, ::-1] > 0)
    mask.convert("RGB").save(tmp_path / "mask.webp", quality=50)
    for value, expected in (
        (mask_file(mask, "JPEG"), "lossless"),
        (mask_file(mask.convert("RGB"), "WEBP", quality=50), "lossy WebP"),
        ({"path": str(tmp_path / "mask.webp"), "bytes": None}, "lossy WebP"),
        ({"path": str(tmp_path / "none.png"), "bytes": None}, "the mask is missing; add the file"),
        ({"path": "http://127.0.0.1:1/a.png", "bytes": None}, "got a URL"),
        (mask_file(mask.rotate(90, expand=True)), "height and width swapped; .* draw the mask on the upright image"),
    ):
        with pytest.raises(BadRowError, match=f"^here: .*{expected}") as caught:
            read_mask(value, HEIGHT, WIDTH, "here")
        assert caught.value.kind == "mask_malformed"


def test_sizes_of_run_lengths_may_be_text_or_floats_but_not_swapped():
    counts = encode_mask(np.ones((HEIGHT, WIDTH)), HEIGHT, WIDTH)["counts"]
    for size in ([HEIGHT, WIDTH], [6.0, 8.0], ["6", "8"]):
        assert decode_mask(read_mask({"size": size, "counts": counts}, HEIGHT, WIDTH, "")).all()
    for size, expected in (
        ([WIDTH, HEIGHT], "swapped"),
        ([6.5, 8], "6.5"),
        ("68", "'68'"),
        ([6, 10**5000], "an integer of thousands"),
    ):
        with pytest.raises(BadRowError, match=rf"size \[height, width\] = \[6, 8\], got .*{expected}"):
            read_mask({"size": size, "counts": counts}, HEIGHT, WIDTH, "here")


def test_several_run_lengths_without_foreground_are_an_empty_mask():
    empty = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    with pytest.raises(BadRowError, match="here: the mask is empty") as caught:
        read_mask([empty, empty], HEIGHT, WIDTH, "here")
    assert caught.value.kind == "mask_empty"


def test_masks_that_would_need_gigabytes_are_refused():
    zigzag = [[-40, 0, 80, 5] * 200_000]
    huge = {"size": [100_000, 100_000], "counts": [10**10]}
    for value, size in ((zigzag, (HEIGHT, WIDTH)), (huge, (100_000, 100_000)), ([[0, 0, 9, 0, 9, 9]], (10**9, 10**9))):
        with pytest.raises(BadRowError, match=r"expected a (polygon with a perimeter|mask of 1 to)"):
            read_mask(value, *size, "here")
    with pytest.raises(BadRowError, match="expected a mask of 1 to 178,956,970 pixels"):
        decode_mask(huge)
