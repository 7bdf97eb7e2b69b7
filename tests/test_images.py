"""Opening image files: formats, EXIF orientation, limits, and one-line errors."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from PIL import Image

from detris_peft import images
from detris_peft.images import decode, open_header, open_image, orientation, upright_size

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"


def pixels(width=10, height=6):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(file, format_="PNG", orientation_=None, image=None, **options):
    if orientation_ is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation_
        options["exif"] = exif
    (Image.fromarray(pixels()) if image is None else image).save(file, format_, **options)
    return file


def content(*arguments, **options):
    return save(io.BytesIO(), *arguments, **options).getvalue()


def damaged_exif(format_):
    """Return an image whose EXIF block is not one."""
    return content(format_, exif=b"Exif\x00\x00damaged")


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", [1, 3, 6, 8, 9])
def test_orientation_is_applied_once(format_, turn):
    data = content(format_, turn)
    size = (10, 6) if turn in (6, 8) else (6, 10)
    with open_header(data) as header:
        assert upright_size(header) == size
    image = open_image(data)
    assert (image.height, image.width) == size
    assert orientation(image) == 1
    if format_ == "PNG" and turn == 6:
        np.testing.assert_array_equal(np.asarray(image), np.rot90(pixels(), -1))


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_is_ignored(format_):
    data = damaged_exif(format_)
    if format_ != "JPEG":  # of a JPEG, Pillow reads the block once, and ignores the error
        with pytest.raises(SyntaxError, match="not a TIFF"):
            Image.open(io.BytesIO(data)).getexif()
    assert open_image(data).size == (10, 6)
    with open_header(data) as header:
        assert (orientation(header), upright_size(header)) == (1, (6, 10))


def test_sources_are_paths_bytes_and_files(tmp_path):
    file = save(tmp_path / "photo.png")
    with open(file, "rb") as opened:
        for source in (file, str(file), file.read_bytes(), opened):
            np.testing.assert_array_equal(np.asarray(open_image(source)), pixels())


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_the_color_mode_of_the_file_is_kept(mode):
    image = Image.fromarray(pixels()[..., 0].astype(np.uint16) * 257) if mode == "I;16" else None
    image = image or Image.fromarray(pixels()).convert(mode)
    assert open_image(content("TIFF", image=image)).mode == mode


def test_the_first_frame_of_an_animation_is_read():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    for format_ in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if format_ == "WEBP" else {}
        data = content(format_, image=frames[0], save_all=True, append_images=frames[1:], **options)
        assert open_image(data).convert("RGB").getpixel((1, 1)) == (255, 0, 0)


def test_formats_that_start_a_program_are_refused(tmp_path, monkeypatch):
    (tmp_path / "photo.png").write_bytes(EPS)
    monkeypatch.setattr("subprocess.check_call", lambda *a, **k: pytest.fail("Ghostscript was started"))
    with pytest.raises(ValueError, match=r"photo\.png: expected an image, got .* \(not one of the formats JPEG, PNG"):
        open_image(tmp_path / "photo.png")


def test_pipes_devices_and_urls_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait forever
    for source, expected in (
        (tmp_path / "pipe.png", "got a device or a pipe"),
        ("/dev/zero", "got a device or a pipe"),
        (tmp_path, "got a folder"),
        ("http://127.0.0.1:1/a.png", "got a URL"),
        ("file:///a.png", "got a URL"),
    ):
        with pytest.raises(ValueError, match=f"expected .*{expected}; .*"):
            open_image(source)


@pytest.mark.parametrize(
    "data", [b"", b"text", content()[:40], content("JPEG", image=Image.new("RGB", (99, 99)))[:-99]]
)
def test_damaged_images_are_one_line(data):
    with pytest.raises(
        ValueError, match=r"^photo: expected an image, .*; download it again or pass another file\.$"
    ) as e:
        open_image(data, "photo")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("path", ["a\0b.png", "a" * 5000, "\ud800.png", "photo.png/inner.png"])
def test_impossible_paths_are_one_line(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "photo.png")
    with pytest.raises((ValueError, FileNotFoundError), match="expected an image"):
        open_image(path)
    with pytest.raises(
        FileNotFoundError, match=r"^none\.png: expected an image, found no such file; check the path\.$"
    ):
        open_image("none.png")


def test_images_above_the_size_limit_of_pillow_are_refused(monkeypatch):
    data = content(image=Image.new("1", (100, 30)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1400)
    with pytest.raises(ValueError, match=r"expected an image of at most 2,800 pixels, got 3,000; scale it down\."):
        open_image(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert open_image(data).size == (100, 30)
    assert images.max_pixels() > 10**12


@pytest.mark.parametrize("array", [np.zeros((4, 4), np.float32), np.zeros((4, 4), np.int32)])
def test_values_of_unknown_range_are_refused(array):
    data = content("TIFF", image=Image.fromarray(array))
    with pytest.raises(ValueError, match=r"8 or 16 bits per channel, got .*, whose range is unknown; convert it"):
        open_image(data)
    with open_header(data, any_depth=True) as header:  # a mask of labels
        assert decode(header, "mask").size == (4, 4)
