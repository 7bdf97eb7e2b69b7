"""Images that cannot be read."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bad_inputs.case import Case, Prepare, write

PREDICT = "predict --checkpoint run/best --text square --output out.png --image"
CONVERT = "data convert --dataset folder --output out"
EVALUATE = "evaluate --checkpoint run/best --dataset folder --split val --num_workers 0"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
PASS = "pass another file"


def content(format_: str, image: Image.Image | None = None, **options) -> bytes:
    file = io.BytesIO()
    (image or Image.effect_noise((60, 40), 90).convert("RGB")).save(file, format_, **options)
    return file.getvalue()


def large_png(name: str) -> Prepare:
    """Write a PNG of 190 million white pixels, in 24 KB."""
    return lambda folder: Image.new("1", (19_000, 10_000), 1).save(folder / name)


def values(name: str, dtype: type) -> Prepare:
    """Write a TIFF whose values have this type, with the size of the images in `folder`."""
    return lambda folder: Image.fromarray(np.zeros((40, 48), dtype)).save(folder / name, "TIFF")


def folder_at(name: str) -> Prepare:
    return lambda folder: (folder / name).mkdir()


def pipe(name: str) -> Prepare:
    def prepare(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return prepare


def remove(name: str) -> Prepare:
    return lambda folder: Path(folder, name).unlink()


CASES = [
    Case(
        "image is text", f"{PREDICT} bad.png", ("bad.png", "expected an image", PASS), write("bad.png", "not an image")
    ),
    Case("image is empty", f"{PREDICT} bad.png", ("bad.png", "expected an image", PASS), write("bad.png", b"")),
    Case("image is missing", f"{PREDICT} none.png", ("none.png", "found no such file", "check the path")),
    Case("image is a folder", f"{PREDICT} photos", ("out.png", "a folder or a .jsonl file"), folder_at("photos")),
    Case(
        "image is a pipe", f"{PREDICT} pipe.png", ("pipe.png", "a device or a pipe", "pass an image"), pipe("pipe.png")
    ),
    Case("image from no server", f"{PREDICT} http://127.0.0.1:1/a.png", ("cannot be downloaded", "check the URL")),
    Case("image name is too long", f"{PREDICT} {'a' * 300}.png", ("File name too long", PASS)),
    Case("image below a file", f"{PREDICT} photo.png/a.png", ("photo.png/a.png", "expected an image", PASS)),
    Case(
        "image is EPS", f"{PREDICT} bad.png", ("bad.png", "not one of the formats JPEG", PASS), write("bad.png", EPS)
    ),
    Case("image is SVG", f"{PREDICT} a.svg", ("a.svg", "not one of the formats", PASS), write("a.svg", "<svg/>")),
    Case("image is PDF", f"{PREDICT} a.pdf", ("a.pdf", "not one of the formats", PASS), write("a.pdf", b"%PDF-1.4\n")),
    Case(
        "image is ICO", f"{PREDICT} a.ico", ("a.ico", "not one of the formats", PASS), write("a.ico", content("ICO"))
    ),
    Case(
        "JPEG is truncated",
        f"{PREDICT} cut.jpg",
        ("cut.jpg", "image file is truncated", "download it again"),
        write("cut.jpg", content("JPEG")[:-300]),
    ),
    Case(
        "PNG is truncated",
        f"{PREDICT} cut.png",
        ("cut.png", "cannot be decoded", "download it again"),
        write("cut.png", content("PNG")[:-300]),
    ),
    Case(
        "WebP is truncated",
        f"{PREDICT} cut.webp",
        ("cut.webp", "cannot be decoded", "download it again"),
        write("cut.webp", content("WEBP")[:-300]),
    ),
    Case(
        "TIFF is truncated",
        f"{PREDICT} cut.tif",
        ("cut.tif", "cannot be decoded", "download it again"),
        write("cut.tif", content("TIFF", compression="tiff_lzw")[:300]),
    ),
    Case(
        "header of a PNG alone",
        f"{PREDICT} cut.png",
        ("cut.png", "cannot be decoded", "download it again"),
        write("cut.png", content("PNG")[:33]),
    ),
    Case(
        "image with too many pixels",
        f"{PREDICT} big.png",
        ("big.png", "at most 178,956,970 pixels, got 190,000,000", "scale it down"),
        large_png("big.png"),
    ),
    Case(
        "floating-point image",
        f"{PREDICT} depth.tif",
        ("depth.tif", "floating-point values", "convert it to 8 bits"),
        values("depth.tif", np.float32),
    ),
    Case(
        "32-bit image",
        f"{PREDICT} depth.tif",
        ("depth.tif", "32-bit", "convert it to 8 bits"),
        values("depth.tif", np.int32),
    ),
    Case(
        "text as image in a process of its own",
        f"{PREDICT} bad.png",
        ("bad.png", "expected an image", PASS),
        write("bad.png", "not an image"),
        subprocess=True,
    ),
    # The same files in a dataset.
    Case(
        "converted image is text", CONVERT, ("line 2", "1.png", "download it again"), write("folder/train/1.png", "x")
    ),
    Case(
        "converted image is EPS", CONVERT, ("line 2", "1.png", "download it again"), write("folder/train/1.png", EPS)
    ),
    Case("converted image is missing", CONVERT, ("line 2", "1.png", "is missing"), remove("folder/train/1.png")),
    Case(
        "converted image is floating-point",
        CONVERT,
        ("line 2", "convert it"),
        values("folder/train/1.png", np.float32),
    ),
    Case("converted image is too large", CONVERT, ("line 2", "scale it down"), large_png("folder/train/1.png")),
    Case(
        "converted image is a pipe",
        CONVERT,
        ("1.png", "got a device or a pipe", "pass an image"),
        pipe("folder/train/1.png"),
    ),
    Case(
        "converted image is truncated",
        CONVERT,
        ("1.png", "cannot be decoded", "reference 2"),
        write("folder/train/1.png", content("PNG", Image.effect_noise((48, 40), 90))[:-300]),
    ),
    Case(
        "converted image has another size",
        CONVERT,
        ("line 2", "size [height, width] = [40, 60], got [40, 48]", "fix one of the two"),
        write("folder/train/1.png", content("PNG")),
    ),
    Case(
        "evaluated image is text", EVALUATE, ("line 1", "0.png", "download it again"), write("folder/val/0.png", "x")
    ),
    Case(
        "evaluated image is floating-point",
        EVALUATE,
        ("line 1", "0.png", "floating-point values", "convert it to 8 bits"),
        values("folder/val/0.png", np.float32),
    ),
]
