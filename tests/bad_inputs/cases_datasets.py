"""Datasets that cannot be read, checked, trained on or converted."""

from __future__ import annotations

from tests.bad_inputs.case import Case, Prepare, steps, write
from tests.bad_inputs.dataset_files import (
    GOOD,
    LINES,
    OUTLINE,
    coco,
    copy,
    double_annotation,
    double_image,
    edit_instances,
    lines,
    link,
    parquet,
    reference,
    remove,
    row,
)

CHECK_FOLDER = "data check --no_images --dataset"
CONVERT = "data convert --dataset folder"
CONVERT_FOLDER = "data convert --output out --dataset"
CONVERT_REFER = "data convert --output out --data_root data --dataset refshapes"
TRAIN = "train --preset tiny --num_workers 0 --output_dir out --dataset"


def _folder(case: str, prepare: Prepare, *expected: str) -> Case:
    """Return a case in which the image folder is converted."""
    return Case(f"folder dataset: {case}", f"{CONVERT_FOLDER} folder", expected, prepare)


def _refer(case: str, prepare: Prepare, *expected: str) -> Case:
    """Return a case in which RefShapes is converted."""
    return Case(f"REFER dataset: {case}", CONVERT_REFER, expected, prepare)


def _coco(case: str, prepare: Prepare, *expected: str) -> Case:
    """Return a case in which coco.json is converted."""
    return Case(f"COCO dataset: {case}", f"{CONVERT_FOLDER} coco.json", expected, prepare)


def _parquet(case: str, prepare: Prepare, *expected: str) -> Case:
    """Return a case in which set/ is converted."""
    return Case(f"parquet dataset: {case}", f"{CONVERT_FOLDER} set", expected, prepare)


def _columns(case: str, prepare: Prepare | None, columns: str, *expected: str) -> Case:
    """Return a case in which set/ is read with a column mapping."""
    command = f"{CONVERT_FOLDER} set --columns {columns}"
    return Case(f"column mapping: {case}", command, expected, steps(parquet(), prepare) if prepare else parquet())


def _yaml(case: str, text: str, *expected: str) -> Case:
    return _columns(case, write("columns.yaml", text), "columns.yaml", *expected)


CASES = [
    # -- names of datasets
    Case("dataset that does not exist", f"{CHECK_FOLDER} flowers", ("data/flowers", "missing", "fix --dataset")),
    Case("dataset path that does not exist", f"{CHECK_FOLDER} /nowhere/set", ("/nowhere/set", "no such file", "fix")),
    Case("data root that does not exist", f"{CHECK_FOLDER} x --data_root no", ("no:", "data root is missing", "pass")),
    Case("dataset is an image", f"{CHECK_FOLDER} photo.png", ("photo.png", "got a file", "pass its folder")),
    Case(
        "dataset is a checkpoint",
        f"{CHECK_FOLDER} backbones",
        ("No (supported) data files", "another folder"),
    ),
    Case(
        "dataset is a text file", f"{CHECK_FOLDER} x.txt", ("x.txt", "got a file", "its folder"), write("x.txt", "a")
    ),
    Case("COCO file that does not exist", f"{CHECK_FOLDER} no.json", ("no.json: no such file", "pass a COCO")),
    Case("COCO template without files", f"{CHECK_FOLDER} no/{{split}}.json", ("no such file", "pass a COCO")),
    Case("Hub dataset offline", f"{CHECK_FOLDER} user/none", ("user/none", "no such folder", "HF_HUB_OFFLINE")),
    Case(
        "data command missing",
        "data",
        ("expected a command (check, convert, describe, review, split)", "got none"),
        code=2,
    ),
    Case("data command mistyped", "data chek --dataset x", ("got 'chek'", "use check"), code=2),
    Case("data option mistyped", "data check --datset x", ("got --datset", "use --dataset"), code=2),
    Case("output missing", "data convert --dataset folder", ("expected --output", "add it"), code=2),
    # -- options
    Case(
        "image folder of a folder dataset",
        f"{CHECK_FOLDER} folder --image_folder folder/train",
        ("--image_folder", "omit the option"),
    ),
    Case(
        "image folder that does not exist",
        f"{CONVERT_REFER} --image_folder photos",
        ("data/photos: the image folder is missing", "fix --image_folder"),
    ),
    Case("leak that is neither", f"{CHECK_FOLDER} folder --leak maybe", ("--leak", "expected keep or drop", "maybe")),
    Case("leak of another dataset", f"{CHECK_FOLDER} folder --leak drop", ("--leak drop", "omit the option")),
    Case("stream of a folder dataset", f"{CHECK_FOLDER} folder --streaming", ("--streaming", "omit")),
    Case("image size 0", f"{CHECK_FOLDER} folder --image_size 0", ("--image_size", "got 0", "change it")),
    Case("negative seed", f"{CHECK_FOLDER} folder --seed -1", ("--seed", "got -1", "change it")),
    Case("shard size without unit", f"{CONVERT_FOLDER} folder --max_shard_size 5", ("max_shard_size", "500MB")),
    Case("private without a push", f"{CONVERT_FOLDER} folder --private", ("--private", "--push_to_hub", "omit")),
    Case("split that does not exist", f"{CONVERT_FOLDER} folder --splits dev", ("no split 'dev'", "train, val")),
    Case(
        "training without the validation split",
        f"{TRAIN} folder --val_split dev",
        ("no split 'dev'", "one of train, val"),
    ),
    # -- outputs
    Case(
        "output is the working directory", "data convert --dataset folder --output .", ("--output .", "add a folder")
    ),
    Case(
        "output is a file", "data convert --dataset folder --output photo.png", ("photo.png", "got a file", "choose")
    ),
    Case(
        "output below a file", "data convert --dataset folder --output photo.png/x", ("is a file", "change the path")
    ),
    Case(
        "output is another folder",
        f"{CONVERT} --output backbones --overwrite",
        ("--output backbones", "other files", "choose another folder"),
    ),
    Case(
        "output is the dataset",
        f"{CONVERT} --output folder --overwrite",
        ("--output folder", "the dataset's own", "choose another"),
    ),
    Case(
        "output exists",
        f"{CONVERT_FOLDER} folder",
        ("--output out", "got an existing one", "--overwrite"),
        steps(write("out/.detris_peft", "dataset\n"), write("out/README.md", "x")),
    ),
    Case(
        "output with a file of the user",
        f"{CONVERT_FOLDER} folder --overwrite",
        ("got notes.txt", "move it"),
        steps(write("out/.detris_peft", "dataset\n"), write("out/notes.txt", "mine")),
    ),
    Case(
        "output with a README of the user",
        f"{CONVERT_FOLDER} folder --overwrite",
        ("--output out", "other files", "choose another folder"),
        write("out/README.md", "# Mine"),
    ),
    Case("report exists", f"{CHECK_FOLDER} folder --report photo.png", ("--report photo.png", "--overwrite")),
    Case("report is a folder", f"{CHECK_FOLDER} folder --report folder", ("--report folder", "add a file name")),
    Case("report and preview are one", f"{CHECK_FOLDER} folder --report r --preview ./r", ("--report", "change one")),
    Case(
        "report over the annotations",
        f"{CHECK_FOLDER} folder --report {LINES} --overwrite",
        ("--report", "the input", "choose another name"),
    ),
    # -- folders with metadata.jsonl
    Case(
        "folder dataset: empty",
        "data convert --output out --dataset empty",
        ("empty: expected at least one row", "add rows"),
        write("empty/metadata.jsonl", ""),
    ),
    Case(
        "folder dataset: CSV",
        f"{CHECK_FOLDER} table",
        ("metadata.csv", "got CSV", "write one JSON object per line"),
        write("table/train/metadata.csv", "file_name,sentence\n"),
    ),
    _folder("one line is cut", lines(GOOD, '{"file_name": "0.p'), "line 2: expected a JSON object", "fix the line"),
    _folder("a number as line", lines(GOOD, "3"), "line 2: expected a JSON object", "got a int", "fix the line"),
    _folder("deep JSON", lines("[" * 100_000), "line 1: expected a JSON object", "too deeply", "fix the line"),
    _folder(
        "a key twice", lines('{"file_name": "0.png", "file_name": "1.png"}'), "line 1", "'file_name' twice", "fix"
    ),
    _folder("UTF-16", write(LINES, "{}".encode("utf-16")), LINES, "expected UTF-8", "save it as UTF-8"),
    _folder("no file name", row(file_name=None), "line 1: expected 'file_name'", "add 'file_name'"),
    _folder("a number as file name", row(file_name=3), "expected text as 'file_name'", "got 3", "fix it"),
    _folder("a number as split", row(split=3), "line 1: expected text as 'split'", "got 3", "fix it"),
    _folder("image missing", row(file_name="9.png"), "train/9.png is missing", "add the image"),
    _folder("file name is a folder", row(file_name="."), "line 1: 'file_name'", "got a folder", "pass an image file"),
    _folder("a URL as file name", row(file_name="https://host/a.png"), "'file_name'", "a.png is missing", "add"),
    _folder("no sentence", row(sentences=[]), "'sentences': expected a sentence", "add a sentence"),
    _folder("sentence of no-break spaces", row(sentences=["&nbsp;"]), "non-blank text", "write or remove it"),
    _folder("half an emoji", row(sentences=["\ud83d"]), "half of a surrogate pair", "fix the text"),
    _folder("no mask", row(mask=None), "line 1: expected 'mask'", "add 'mask'"),
    _folder("mask file missing", row(mask="m.png"), "m.png: the mask is missing", "add the file"),
    _folder("mask of two points", row(mask=[1, 1, 2, 2]), "three points", "fix the segmentation"),
    _folder("mask outside the image", row(mask=[90, 1, 99, 1, 99, 9]), "entirely outside", "fix its coordinates"),
    _folder("no_target as text", row(no_target="yes"), "'no_target': expected true or false", "fix the value"),
    _folder("an id twice", lines({**GOOD, "ref_id": 5}, {**GOOD, "ref_id": 5}), "line 2", "line 1", "change one"),
    _folder(
        "image outside of it",
        row(file_name="../../photo.png", mask=OUTLINE),
        "photo.png is not in the folder",
        "--allow_outside",
    ),
    _folder(
        "link out of it",
        steps(remove("folder/train/0.png"), link("folder/train/0.png", "../../photo.png"), row()),
        "0.png, which leads to ",
        "--allow_outside",
    ),
    _folder(
        "mask outside of it",
        steps(copy("folder/train/0_mask.png", "secret.png"), row(mask="../../secret.png")),
        "secret.png is not in the folder",
        "--allow_outside",
    ),
    _folder(
        "mask outside of it in an object",
        steps(copy("folder/train/0_mask.png", "secret.png"), row(mask={"path": "../../secret.png"})),
        "secret.png is not in the folder",
        "--allow_outside",
    ),
    _folder(
        "image is cut",
        lambda root: (root / "folder/train/0.png").write_bytes((root / "folder/train/0.png").read_bytes()[:90]),
        "train/0.png",
        "cannot be decoded",
        "download it again",
    ),
    Case(
        "training image that is also validated on",
        f"{TRAIN} folder --batch_size 2",
        ("1.png is also val/0.png in validation", "--leak keep"),
        copy("folder/train/1.png", "folder/val/0.png"),
    ),
    Case(
        "training with a bad line",
        f"{TRAIN} folder",
        ("line 1", "train/9.png is missing", "add the image"),
        row(file_name="9.png"),
    ),
    # -- REFER
    _refer("annotations missing", remove("data/refshapes/instances.json"), "instances.json", "add the dataset's"),
    _refer("split provenance", remove("data/refshapes/refs(unc).p"), "refs(unc).p: the file is missing"),
    _refer("annotations cut", write("data/refshapes/instances.json", '{"images": ['), "expected JSON", "download"),
    _refer("annotations as a list", write("data/refshapes/instances.json", "[]"), "expected 'images'", "download"),
    _refer("deep annotations", write("data/refshapes/instances.json", "[" * 100_000), "instances.json", "too deeply"),
    _refer("no pickle", write("data/refshapes/refs(unc).p", b"not a pickle"), "refs(unc).p"),
    _refer("image id twice", edit_instances(double_image), "one image with the id", "two that differ", "renumber"),
    _refer("annotation id twice", edit_instances(double_annotation), "one annotation with the id", "renumber one"),
    _refer("reference id twice", reference("ref_id", 1, 1), "a unique 'ref_id'", "index 0", "renumber"),
    _refer("no split", reference("split", None), "expected 'split' of type str", "fix it"),
    _refer("a number as split", reference("split", 3), "expected 'split' of type str", "got 3", "fix it"),
    _refer("unknown annotation", reference("ann_id", 999), "no annotation 999", "download both again"),
    _refer("text as id", reference("ann_id", "x"), "expected 'ann_id' of type int", "got 'x'", "fix it"),
    _refer(
        "images missing",
        lambda root: (root / "data/images").rename(root / "data/photos"),
        "the image folder is missing",
        "image_folder",
    ),
    # -- COCO
    _coco("a list", write("coco.json", [1]), "expected COCO JSON", "got a list", "pass another file"),
    _coco("no sentences", coco(sentences=[]), "expected annotations with 'sentences'", "add them"),
    _coco(
        "unknown image", coco(image_id=2), "annotation 7: expected an 'image_id' among 'images', got 2", "fix the id"
    ),
    _coco("size as text", coco(image={"height": "40"}), "expected a number as 'height'", "got '40'", "fix it"),
    _coco(
        "size swapped",
        coco(image={"height": 48, "width": 40}),
        "of 40x48 pixels",
        "of 48x40 pixels",
        "fix the declared",
    ),
    _coco("id is a fraction", coco(id=1.5), "'id': expected an integer or text", "got 1.5", "fix the id"),
    _coco(
        "mask outside",
        steps(copy("folder/train/0_mask.png", "../secret.png"), coco(segmentation="../secret.png")),
        "'segmentation': ",
        "secret.png is not in the folder",
        "--allow_outside",
    ),
    _coco("image outside", coco(image={"file_name": "../x.png"}), "../x.png is missing", "add the image"),
    _coco(
        "image id twice",
        write(
            "coco.json",
            {
                "images": [{"id": 1, "file_name": f"folder/train/{number}.png"} for number in (0, 1)],
                "annotations": [{"id": 7, "image_id": 1, "segmentation": [OUTLINE], "sentences": ["x"]}],
            },
        ),
        "'folder/train/0.png' and 'folder/train/1.png'",
        "renumber",
    ),
    # -- parquet
    _parquet("no image", parquet(image=None), "'image': expected an image, got none", "add its bytes"),
    _parquet(
        "a URL", parquet(image={"path": "https://host/a.png", "bytes": None}), "got the URL", "download the image"
    ),
    _parquet("a path out", parquet(image={"path": "photo.png", "bytes": None}), "photo.png is not", "--allow_outside"),
    _parquet("no target but a mask", parquet(no_target=True), "without foreground", "'no_target' is true", "fix one"),
    _parquet("no mask", parquet(mask=None), "got none in 'mask'", "fill it in"),
    _parquet("no id", parquet(ref_id=None), "got none in 'ref_id'", "fill it in"),
    _parquet("no sentences", parquet(sentences=[]), "'sentences': expected a sentence", "add a sentence"),
    _parquet("mask of three sides", parquet(mask={"size": [1, 2, 3], "counts": "0"}), "expected a size", "again"),
    _parquet("mask is cut", parquet(mask={"size": [40, 48], "counts": "P"}), "'mask'", "RLE"),
    _parquet("file is cut", write("set/train.parquet", b"PAR1"), "set: `datasets` cannot read it", "again"),
    # -- column mappings
    _columns("unknown", None, "mine", "mine: no such column mapping", "pass a YAML file"),
    _columns("unknown column", None, "image=img,mask=mask", "expected the column 'img'", "fix the mapping"),
    _columns("a field twice", None, "mask=mask,mask=image", "got one twice", "remove one"),
    _columns("unknown field", None, "mask=mask,shade=x", "got shade", "remove or rename"),
    _yaml("unfinished YAML", "mask: [", "columns.yaml", "expected YAML", "correct that line"),
    _yaml("YAML list", "- mask", "expected the fields image", "write a mapping"),
    _yaml("YAML number", "mask: 3", "expected 'mask' of type str", "got 3", "fix it"),
    _yaml("YAML integer key", "{3: mask, mask: mask}", "columns.yaml", "got 3", "remove or rename"),
    _yaml("YAML key twice", "mask: mask\nmask: image", "every key once", "remove one"),
    _yaml("YAML splits", "mask: mask\nsplits: {val: 1}", "expected text within 'splits'", "put it in quotes"),
    _yaml("mask and box", "mask: mask\nbox: mask", "exactly one of 'mask' and 'box'", "name the column"),
    Case(
        "column mapping: unknown split",
        f"{CONVERT_FOLDER} set --columns mask=mask,split=split --splits val",
        ("set: no split 'val'", "one of train", "the values of 'split'"),
        parquet(),
    ),
]
