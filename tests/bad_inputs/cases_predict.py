"""Images, tables of pairs and outputs that `detris predict` cannot use."""

from pathlib import Path

from detris_peft.outputs import mark_folder
from tests.bad_inputs.case import Case, Prepare, steps, write

CHECKPOINT = "predict --checkpoint run/best"
MANY = f"{CHECKPOINT} --image photo.png --text square --text circle"
PAIRS = f"{CHECKPOINT} --pairs"
ROW = "image,text\nphoto.png,square\n"


def made(name: str, kind: str | None = None) -> Prepare:
    """Return a function that makes a folder, marked as one that detris_peft wrote."""

    def prepare(root: Path) -> None:
        (root / name).mkdir()
        if kind:
            mark_folder(root / name, kind)
            (root / name / "predictions.jsonl").write_text("")

    return prepare


def linked(name: str, link: str) -> Prepare:
    """Return a function that gives a file a second name."""
    return lambda root: (root / link).hardlink_to(root / name)


CASES = [
    # -- usage
    Case("no texts", f"{CHECKPOINT} --image photo.png", ("expected --text", "add it, or pass --pairs"), code=2),
    Case("no images", f"{CHECKPOINT} --text square", ("expected --image", "add it, or pass --pairs"), code=2),
    Case("neither images nor texts", CHECKPOINT, ("expected --image and --text", "add them"), code=2),
    Case("pairs and texts", f"{PAIRS} p.csv --text square", ("--pairs, or --image and --text", "remove"), code=2),
    Case("two images after one option", f"{MANY} --image a.png b.png", ("--image", "got 2 words"), code=2),
    Case("second text without quotes", f"{MANY} --text red ball", ("--text", "quotes: 'red ball'"), code=2),
    Case("batch size of predict", f"{MANY} --batch_size 0", ("--batch_size: expected 1 to", "got 0")),
    Case("no threads", f"{MANY} --num_workers 0", ("--num_workers: expected 1 to", "got 0")),
    Case("unknown precision of predict", f"{MANY} --precision int8", ("auto, fp32, bf16", "'int8'"), code=2),
    Case("unknown quantization", f"{MANY} --quantize int4", ("--quantize", "int8", "'int4'"), code=2),
    Case(
        "compilation for one image",
        f"{CHECKPOINT} --image photo.png --text x --output x.png --compile",
        ("--compile: expected a folder as --output", "pass --output x/"),
    ),
    Case("unknown kind of file", f"{MANY} --save masks", ("--save: expected overlay, mask, probability", "'masks'")),
    Case(
        "resume and overwrite of predict",
        f"{MANY} --resume --overwrite",
        ("--resume: expected it without --overwrite",),
    ),
    Case("second text is blank", f"{MANY} --text ' '", ("--text: expected a sentence", "pass a non-empty")),
    Case("standard input twice", f"{MANY} --image - --image -", ("--image -: expected it once", "remove one")),
    # -- images
    Case("pattern without matches", f"{CHECKPOINT} --image 'x/*.jpg' --text x", ("x/*.jpg", "found none", "pattern")),
    Case(
        "folder without images",
        f"{CHECKPOINT} --image texts --text x",
        ("texts", "folder with images", "another folder"),
        write("texts/a.txt", "x"),
    ),
    Case("URL that is not http", f"{CHECKPOINT} --image ftp://x.org/a.png --text x", ("ftp://x.org", "URL")),
    # -- pairs
    Case("missing pairs", f"{PAIRS} none.csv", ("none.csv", "found none", "check the path")),
    Case("empty name of pairs", f"{PAIRS} ''", ("--pairs", "empty name", "pass one")),
    Case(
        "pairs of another kind",
        f"{PAIRS} p.xlsx",
        ("p.xlsx", ".csv, .tsv or .jsonl", "convert it"),
        write("p.xlsx", ""),
    ),
    Case("pairs in a folder", f"{PAIRS} p.csv", ("p.csv", "got a folder or a device"), made("p.csv")),
    Case("empty pairs", f"{PAIRS} p.csv", ("p.csv", "columns image and text", "rename"), write("p.csv", "")),
    Case("header only", f"{PAIRS} p.csv", ("p.csv", "found none", "check the file"), write("p.csv", "image,text\n")),
    Case("other columns", f"{PAIRS} p.csv", ("'file;text'", "rename them"), write("p.csv", "file;text\na;b\n")),
    Case("column twice", f"{PAIRS} p.csv", ("image and text", "rename"), write("p.csv", "image,image,text\na,b,c\n")),
    Case(
        "no valid pair",
        f"{PAIRS} p.csv",
        ("expected valid rows", "line 2: text: expected a sentence", "correct the file"),
        write("p.csv", "image,text\na.png,\n"),
    ),
    Case(
        "binary pairs",
        f"{PAIRS} p.jsonl",
        ("got none", "in UTF-8", "correct the file"),
        write("p.jsonl", b"\xff\xfe\0"),
    ),
    Case(
        "missing image root",
        f"{PAIRS} p.csv --image_root none",
        ("--image_root none", "check the path"),
        write("p.csv", ROW),
    ),
    # -- outputs
    Case("image as output of many", f"{MANY} --output x.png", ("x.png", "a folder or a .jsonl file", "change it")),
    Case("unknown suffix", f"{MANY} --output x.txt", (".png, .jpg or .jsonl, or a folder", "x.txt/ for a folder")),
    Case("images next to JSON Lines", f"{MANY} --output x.jsonl --save mask", ("--save", "pass a folder")),
    Case(
        "probabilities next to an overlay",
        f"{CHECKPOINT} --image photo.png --text x --output x.png --save probability",
        ("--save: expected a folder as --output", "pass --output x/"),
    ),
    Case("resume of one image", f"{CHECKPOINT} --image photo.png --text x --resume", ("--resume: expected a folder",)),
    Case(
        "folder with other files", f"{MANY} --output data --overwrite", ("data", "with other files", "another folder")
    ),
    Case("folder of another kind", f"{MANY} --output o --overwrite", ("that of a run", "another"), made("o", "run")),
    Case("existing predictions", f"{MANY} --output o", ("--overwrite, or --resume",), made("o", "predictions")),
    Case("existing JSON Lines", f"{MANY} --output x.jsonl", ("existing one", "--overwrite"), write("x.jsonl", "")),
    Case(
        "resume without a job",
        f"{MANY} --output x.jsonl --resume",
        ("x_job.json of an interrupted job", "--overwrite instead"),
        write("x.jsonl", "{}\n"),
    ),
    Case(
        "resume of a folder without a job",
        f"{MANY} --output o --resume",
        ("job.json of an interrupted job", "--overwrite instead"),
        steps(made("o", "predictions"), write("o/predictions.jsonl", "{}\n")),
    ),
    Case(
        "output is a hard link of the table",
        f"{PAIRS} p.jsonl --output x.jsonl --overwrite",
        ("x.jsonl", "than that of the input p.jsonl", "choose another"),
        steps(write("p.jsonl", {"image": "photo.png", "text": "square"}), linked("p.jsonl", "x.jsonl")),
    ),
    Case(
        "output is the table",
        f"{PAIRS} p.jsonl --output p.jsonl --overwrite",
        ("p.jsonl", "than that of the input", "choose another"),
        write("p.jsonl", {"image": "photo.png", "text": "square"}),
    ),
    Case(
        "output holds the table",
        f"{PAIRS} o/p.csv --output o --overwrite",
        ("o/p.csv", "than that of the input", "choose another"),
        steps(made("o", "predictions"), write("o/p.csv", ROW.replace("photo", "../photo"))),
    ),
]
