"""Rows of a dataset with sentences, masks or ids that cannot be used."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bad_inputs.case import Case, Prepare, steps, write

CONVERT = "data convert --dataset folder --output out"
EVALUATE = "evaluate --checkpoint run/best --dataset folder --split val --num_workers 0"
TRAIN = "train --preset tiny --dataset folder --num_workers 0 --epochs 1 --batch_size 2 --output_dir out"
COCO = "data convert --dataset coco.json --output out"

MASK = np.zeros((40, 48), np.uint8)
MASK[8:24, 8:24] = 255
GRAY = Image.fromarray(MASK)
WHITE = Image.new("L", GRAY.size, 255)
RLE = {"size": [40, 48], "counts": [1920]}


def line(split: str = "train", **changes) -> Prepare:
    """Change fields of the first line of a metadata.jsonl."""

    def prepare(folder: Path) -> None:
        file = folder / "folder" / split / "metadata.jsonl"
        first, *others = file.read_text().splitlines()
        file.write_text("\n".join([json.dumps({**json.loads(first), **changes}), *others]) + "\n")

    return prepare


def text(value, split: str = "train") -> Prepare:
    return line(split, sentences=[value])


def mask(value) -> Prepare:
    """Set the mask of the first training row: a value, or an image that is saved as PNG."""
    if not isinstance(value, Image.Image):
        return line(mask=value)
    return lambda folder: value.save(folder / "folder/train/0_mask.png")


def mask_file(format_: str, image: Image.Image = GRAY, **options) -> Prepare:
    """Save the mask of the first training row in another format, under a name that ends with .png."""
    return lambda folder: image.save(folder / "folder/train/0_mask.png", format_, **options)


def palette(indices: np.ndarray, *colors: int) -> Image.Image:
    image = Image.fromarray(indices, "P")
    image.putpalette(colors)
    return image


def coco(image: dict | None = None, annotation: dict | None = None) -> Prepare:
    """Write a COCO file of one image with one annotation, with changed fields."""
    square = {"id": 7, "image_id": 1, "segmentation": [[8, 8, 24, 8, 24, 24]], "sentences": ["a square"]}
    content = {"images": [{"id": 1, "file_name": "folder/train/0.png", **(image or {})}]}
    return write("coco.json", {**content, "annotations": [{**square, **(annotation or {})}]})


def digits(name: str, count: int) -> Prepare:
    """Write an id of `count` digits into the first training row."""

    def prepare(folder: Path) -> None:
        file = folder / "folder/train/metadata.jsonl"
        file.write_text(file.read_text().replace("{", f'{{"{name}": {"9" * count}, ', 1))

    return prepare


FIX = "write or remove it"
CASES = [
    # Sentences that the tokenizer would read as nothing.
    Case("sentence is a blank entity", CONVERT, ("line 1: 'sentences'", "non-blank text", FIX), text("&nbsp;")),
    Case("sentence is a zero-width space", CONVERT, ("line 1", "'\\u200b'", FIX), text("\u200b")),
    Case("sentence is a byte order mark", CONVERT, ("line 1", "'\\ufeff'", FIX), text("\ufeff")),
    Case("sentence is a direction mark", EVALUATE, ("line 1", "'\\u200f'", FIX), text("\u200f", "val")),
    Case("sentence is a Hangul filler", CONVERT, ("line 1", "'\\u3164'", FIX), text("\u3164")),
    Case("sentence is a soft hyphen", CONVERT, ("line 1", "'\\xad'", FIX), text("\u00ad")),
    Case("sentence is a control character", CONVERT, ("line 1", "'\\x07'", FIX), text("\x07")),
    Case("sentence is blank", EVALUATE, ("line 1", "non-blank text", FIX), text("  ", "val")),
    Case("trained sentence is blank", TRAIN, ("line 1", "non-blank text", FIX), text("&#8203;")),
    Case(
        "sentence is half an emoji",
        CONVERT,
        ("line 1", "half of a surrogate pair", "fix the text"),
        text("red \ud83d"),
    ),
    Case("trained half an emoji", TRAIN, ("line 1", "half of a surrogate pair", "fix the text"), text("red \ud83d")),
    Case("sentence is a number", CONVERT, ("line 1", "sentences of text, got 7", FIX), text(7)),
    Case("no sentence", CONVERT, ("line 1: 'sentences'", "got []", "add a sentence"), line(sentences=[])),
    Case(
        "COCO sentence is blank", COCO, ("annotation 7", "non-blank", FIX), coco(annotation={"sentences": ["&nbsp;"]})
    ),
    Case("COCO half an emoji", COCO, ("annotation 7", "surrogate", "fix"), coco(annotation={"sentences": ["\ud83d"]})),
    # Mask images.
    Case(
        "mask in the alpha channel",
        CONVERT,
        ("line 1", "0_mask.png", "without transparency", "save it as white"),
        mask(Image.merge("RGBA", (WHITE, WHITE, WHITE, GRAY))),
    ),
    Case(
        "gray mask in the alpha channel",
        CONVERT,
        ("0_mask.png", "without transparency", "save it"),
        mask(Image.merge("LA", (WHITE, GRAY))),
    ),
    Case(
        "palette mask on white",
        CONVERT,
        ("0_mask.png", "background is index 0 and black", "save it"),
        mask(palette(MASK // 255, 255, 255, 255, 255, 0, 0)),
    ),
    Case(
        "mask is a JPEG",
        CONVERT,
        ("0_mask.png", "lossless mask, got one in the format JPEG", "save it as PNG"),
        mask_file("JPEG"),
    ),
    Case(
        "mask is a lossy WebP",
        CONVERT,
        ("0_mask.png", "got a lossy WebP", "save it as PNG"),
        mask_file("WEBP", GRAY.convert("RGB")),
    ),
    Case(
        "mask is a lossy TIFF",
        CONVERT,
        ("0_mask.png", "lossy compression", "save it as PNG"),
        mask_file("TIFF", compression="jpeg"),
    ),
    Case(
        "mask is a photo",
        CONVERT,
        ("0_mask.png", "as in a photo", "threshold it"),
        mask(Image.effect_noise((48, 40), 90)),
    ),
    Case(
        "mask of fractions",
        CONVERT,
        ("0_mask.png", "fractions or NaN", "threshold it"),
        mask_file("TIFF", Image.fromarray(MASK / np.float32(510))),
    ),
    Case(
        "mask of negative numbers",
        CONVERT,
        ("0_mask.png", "negative", "save it"),
        mask_file("TIFF", Image.fromarray(-MASK.astype(np.int32))),
    ),
    Case(
        "mask is empty",
        CONVERT,
        ("line 1", "mask is empty", "mark the row as no_target"),
        mask(Image.new("L", (48, 40))),
    ),
    Case(
        "mask has another size",
        CONVERT,
        ("size [height, width] = [40, 48], got", "fix one of the two"),
        mask(Image.new("L", (9, 9), 255)),
    ),
    Case("mask is text", CONVERT, ("0_mask.png", "expected an image"), write("folder/train/0_mask.png", "x")),
    Case("mask is missing", CONVERT, ("none.png", "the mask is missing", "add the file"), mask("none.png")),
    # Run lengths and polygons.
    Case(
        "swapped size",
        CONVERT,
        ("got [48, 40] with height and width swapped", "fix"),
        mask({"size": [48, 40], "counts": [1920]}),
    ),
    Case("size of fractions", CONVERT, ("got [40.5, 48]", "fix one of the two"), mask({**RLE, "size": [40.5, 48]})),
    Case("size of one number", CONVERT, ("got [40]", "fix one of the two"), mask({**RLE, "size": [40]})),
    Case("run lengths without foreground", CONVERT, ("the mask is empty", "fix it"), mask([RLE, RLE])),
    Case(
        "run lengths too short",
        CONVERT,
        ("add up to height x width = 1920", "download"),
        mask({**RLE, "counts": [9, 9]}),
    ),
    Case(
        "negative run lengths",
        CONVERT,
        ("add up to height x width = 1920", "download"),
        mask({**RLE, "counts": [-9, 1929]}),
    ),
    Case(
        "run lengths of text",
        CONVERT,
        ("add up to height x width", "download"),
        mask({**RLE, "counts": ["1", "1919"]}),
    ),
    Case("damaged compressed run lengths", CONVERT, ("complete RLE", "download"), mask({**RLE, "counts": "oooo"})),
    Case("polygon of two points", CONVERT, ("polygon of three points", "fix"), mask([[1, 1, 9, 9]])),
    Case("polygon of text", CONVERT, ("polygon coordinates", "fix them"), mask([["1", "1", "9", "1", "9", "9"]])),
    Case(
        "polygon with a huge number",
        CONVERT,
        ("polygon coordinates within 480 pixels", "fix"),
        mask([[1, 1, 10**400, 1, 9, 9]]),
    ),
    Case(
        "polygon outside the image",
        CONVERT,
        ("entirely outside the image of 48x40", "fix"),
        mask([[60, 60, 90, 60, 90, 90]]),
    ),
    Case(
        "polygon of fractions",
        CONVERT,
        ("expected coordinates in pixels", "convert them"),
        mask([[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]),
    ),
    Case(
        "polygon that needs gigabytes",
        CONVERT,
        ("perimeter of at most", "simplify it"),
        mask([[-400, 0, 400, 5] * 6000]),
    ),
    Case("trained mask is empty", TRAIN, ("line 1", "mask is empty", "no_target"), mask(Image.new("L", (48, 40)))),
    # Ids.
    Case("id is a fraction", CONVERT, ("line 1: 'ref_id'", "got 3.5", "fix the id"), line(ref_id=3.5)),
    Case("id is a list", CONVERT, ("line 1: 'image_id'", "got [1]", "fix the id"), line(image_id=[1])),
    Case("id is true", CONVERT, ("line 1: 'ann_id'", "got True", "fix the id"), line(ann_id=True)),
    Case(
        "id is half a surrogate pair",
        CONVERT,
        ("line 1: 'ref_id'", "surrogate", "fix the text"),
        line(ref_id="\udc00"),
    ),
    Case(
        "id of 5000 digits",
        CONVERT,
        ("metadata.jsonl line 1", "more than 4,300 digits", "fix the line"),
        digits("ref_id", 5000),
    ),
    Case("COCO id is a fraction", COCO, ("'id'", "got 3.5", "fix the id"), coco(annotation={"id": 3.5})),
    Case("COCO image id is unknown", COCO, ("annotation 7", "'2'", "fix the id"), coco(annotation={"image_id": "2"})),
    Case("COCO size is text", COCO, ("'height'", "got '40'", "fix it"), coco(image={"height": "40", "width": "48"})),
    Case("COCO size is another", COCO, ("40x48 pixels as in coco", "48x40"), coco(image={"height": 48, "width": 40})),
    Case(
        "no target is text", CONVERT, ("'no_target'", "expected true or false, got 'no'", "fix"), line(no_target="no")
    ),
    Case(
        "two rows with the same id",
        CONVERT,
        ("unique 'ref_id'", "change one of the two"),
        steps(line(ref_id=2), line("val", ref_id=2)),
    ),
]
