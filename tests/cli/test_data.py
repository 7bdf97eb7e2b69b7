"""`detris data`: printed output, exit codes and report files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from detris_peft.cli import main
from detris_peft.cli.data.check import CheckArguments, check
from detris_peft.data.sources import DataSource
from detris_peft.visualization import MASK_COLOR

SQUARE = [5.0, 5.0, 20.0, 5.0, 20.0, 15.0, 5.0, 15.0]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def garden(tmp_path):
    """A function that writes an image folder with metadata.jsonl: `garden(train=lines, val=lines)`."""

    def write(**splits):
        for number, (split, lines) in enumerate(splits.items()):
            folder = tmp_path / "garden" / split
            folder.mkdir(parents=True)
            for name in {line["file_name"] for line in lines}:
                Image.new("RGB", (40, 30), (100, 50 * number, sum(name.encode()) % 256)).save(folder / name)
            (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        return tmp_path / "garden"

    return write


def line(name, sentence=r"the rose for $5\x or $10", **more):
    return {"file_name": name, "sentence": sentence, "mask": SQUARE, **more}


def run(capsys, *arguments):
    """Run `detris data`; return exit code, standard output and standard error."""
    code = 0
    try:
        main(["data", *map(str, arguments)])
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_valid_dataset(garden, capsys, tmp_path):
    folder = garden(
        train=[line("a.png"), line("b.png"), line("b.png", mask=None, no_target=True)], val=[line("c.png")]
    )
    report, preview = tmp_path / "new" / "report.json", tmp_path / "preview.png"
    code, out, _ = run(capsys, "check", "--dataset", folder, "--report", report, "--preview", preview)
    assert code == 0
    assert out.splitlines()[1:6] == [
        "",
        "split  images  references  sentences  no target  errors  notices",
        "train       2           3          3          1       0        0",
        "val         1           1          1          0       0        0",
        "",
    ]
    content = json.loads(report.read_text(encoding="utf-8"))
    assert content["ok"]
    assert content["splits"]["train"] == {
        "images": 2,
        "references": 3,
        "sentences": 3,
        "objects": 0,
        "no_target": 1,
        "published": None,
        "bad": {},
        "notices": {},
    }
    pixels = np.asarray(Image.open(preview).convert("RGB")).reshape(-1, 3)
    difference = np.abs(pixels.astype(int) - MASK_COLOR).max(axis=1)
    assert (difference < 64).sum() > 100  # the outlines of the masks, blended with their surround


def test_a_preview_is_the_same_for_the_same_seed(garden, capsys, tmp_path):
    folder = garden(train=[line(f"{number}.png", f"rose {number}") for number in range(30)])
    files = [tmp_path / name for name in ("one.png", "again.png", "other.png")]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        run(capsys, "check", "--dataset", folder, "--preview", file, "--seed", seed)
    one, again, other = (np.asarray(Image.open(file)) for file in files)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_errors_are_counted_listed_and_give_exit_code_1(garden, capsys, tmp_path):
    lines = [line(f"{number}.png", mask=[[0.0, 0, 1]]) for number in range(5)]
    folder = garden(train=[*lines, line("good.png")], val=[line("good.png", "tulip " * 30)])
    (folder / "val" / "good.png").write_bytes((folder / "train" / "good.png").read_bytes())
    report, preview = tmp_path / "report.json", tmp_path / "preview.png"
    code, out, _ = run(capsys, "check", "--dataset", folder, "--report", report, "--preview", preview)
    assert code == 1
    assert "train mask_malformed: 5" in out or "train mask_empty: 5" in out
    assert f"{folder}/train/metadata.jsonl line 1: " in out
    assert "line 4: " not in out
    assert "... and 2 more" in out
    assert "val shared_image: 1" in out
    order = ("\nerrors\n", "  val shared_image", "\nnotices\n", "got at least 32; the rest is cut off")
    assert [out.index(text) for text in order] == sorted(out.index(text) for text in order)
    assert preview.exists()  # shows the valid rows
    content = json.loads(report.read_text(encoding="utf-8"))
    assert not content["ok"]
    assert sum(content["splits"]["train"]["bad"].values()) == 5
    assert len([one for one in content["errors"] if one["split"] == "train"]) == 5  # the report is not shortened


def test_only_invalid_rows_can_be_skipped(garden, capsys):
    folder = garden(train=[line("good.png")], val=[line("good.png")])
    (folder / "val" / "good.png").write_bytes((folder / "train" / "good.png").read_bytes())
    code, out, _ = run(capsys, "check", "--dataset", folder)
    assert code == 1
    assert out.rstrip().endswith("\nFix these errors.")
    with open(folder / "train" / "metadata.jsonl", "a", encoding="utf-8") as file:
        file.write("\nno JSON")
    _, out, _ = run(capsys, "check", "--dataset", folder)
    assert out.rstrip().endswith("\nFix these errors, or pass --skip_bad_rows to skip invalid rows.")


def test_tokens_are_counted_with_a_tokenizer(garden, capsys, tmp_path):
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "<s>": 1, "</s>": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # one token per letter
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "letters")
    folder = garden(train=[line("a.png", "a" * 15), line("b.png", "b" * 16)])
    _, out, _ = run(capsys, "check", "--dataset", folder, "--tokenizer", tmp_path / "letters")
    assert "train sentence_too_long: 1" in out
    assert f"reference 2: expected at most 17 tokens, got 18; the rest is cut off: '{'b' * 16}'" in out
    code, _, _ = run(capsys, "check", "--dataset", folder, "--tokenizer", tmp_path / "none")
    assert str(code).startswith(f"error: tokenizer {tmp_path / 'none'}: cannot be loaded (")


def test_a_mask_that_vanishes_at_the_model_size_is_an_error(garden, capsys):
    """The processor samples every 40th pixel of this image, so a small mask can fall between samples."""
    folder = garden(train=[line("a.png")])
    Image.new("RGB", (2000, 1000)).save(folder / "train" / "a.png")
    lines = [line("a.png", mask=[x, 333, x + 2, 333, x + 2, 335, x, 335]) for x in range(1000, 1040)]
    (folder / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, out, _ = run(capsys, "check", "--dataset", folder, "--image_size", "50", "--no_images")
    assert code == 1
    assert "mask_empty" in out
    assert "got reference 1 with 4 pixels of which none remain" in out
    code, _, _ = run(capsys, "check", "--dataset", folder, "--image_size", "1200", "--no_images")
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "--dataset", "nowhere"], "error: data: the data root is missing"),
        (["convert", "--dataset", "nowhere", "--output", "out"], "error: data: the data root is missing"),
        (
            ["convert", "--output", "out", "--max_shard_size", "5"],
            "error: max_shard_size: expected a number with KB, MB or GB",
        ),
        (["check", "--streaming"], "error: --streaming: expected a dataset with random access"),
    ],
)
def test_invalid_arguments_give_an_error_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, *arguments)
    assert str(code).startswith(message)
    assert "\n" not in str(code)
    assert not out
    assert not (tmp_path / "out").exists()


def test_the_output_of_convert_passes_check(garden, capsys, tmp_path):
    folder = garden(train=[line("a.png"), line("b.png", mask=[])], val=[line("c.png")])
    out = tmp_path / "parquet"
    code, _, _ = run(capsys, "convert", "--dataset", folder, "--output", out)
    assert "train/metadata.jsonl line 2" in str(code)
    assert not out.exists()
    code, text, _ = run(capsys, "convert", "--dataset", folder, "--output", out, "--skip_bad_rows")
    assert code == 0
    assert text.startswith(f"wrote {out}: train 1 rows, val 1 rows\n")
    assert "skipped 1 invalid row\n" in text
    assert "train/metadata.jsonl line 2" in text
    code, text, _ = run(capsys, "check", "--dataset", out)
    assert code == 0
    assert "train       1           1          1       0        0" in text
    code, _, _ = run(capsys, "convert", "--dataset", folder, "--output", out, "--splits", "val")
    assert "--overwrite" in str(code)
    code, _, _ = run(capsys, "convert", "--dataset", folder, "--output", out, "--splits", "val", "--overwrite")
    assert DataSource(str(out)).splits() == ["val"]


class Hub:
    """Records calls; raises `error` on upload if it is set."""

    def __init__(self):
        self.calls, self.error = [], None

    def create_repo(self, name, **options):
        self.calls.append(("create_repo", name, options))

    def upload_folder(self, **options):
        self.calls.append(("upload_folder", options))
        if self.error:
            raise self.error
        return "https://hub/commit"


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setattr("detris_peft.modeling.hub.check_hub_access", lambda name: hub.calls.append(("check", name)))
    return hub


def test_push_to_hub_uploads_the_folder_and_deletes_old_shards(garden, capsys, tmp_path, hub):
    folder, out = garden(train=[line("a.png")]), tmp_path / "out"
    code, text, _ = run(
        capsys, "convert", "--dataset", folder, "--output", out, "--push_to_hub", "user/garden", "--private"
    )
    assert code == 0
    assert "uploaded user/garden: https://hub/commit" in text
    check, create, upload = hub.calls
    assert check == ("check", "user/garden")
    assert create == ("create_repo", "user/garden", {"repo_type": "dataset", "private": True, "exist_ok": True})
    assert upload[1].items() >= {"repo_id": "user/garden", "repo_type": "dataset", "folder_path": str(out)}.items()
    assert upload[1]["delete_patterns"] == "data/*.parquet"  # shards of an earlier conversion


def test_a_failed_upload_names_the_local_folder_and_how_to_resume(garden, capsys, tmp_path, hub):
    folder, out = garden(train=[line("a.png")]), tmp_path / "out"
    hub.error = OSError("403 Forbidden\nlong story")
    code, _, _ = run(capsys, "convert", "--dataset", folder, "--output", out, "--push_to_hub", "user/garden")
    assert str(code).startswith(f"error: user/garden: the upload failed (403 Forbidden); {out} is complete")
    assert str(code).endswith(f"`hf upload user/garden {out} --repo-type dataset`")
    assert (out / "README.md").exists()


def test_help_lists_commands_and_options(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "check" in out
    assert "convert" in out
    code, out, _ = run(capsys, "check", "--help")
    for option in ("--dataset", "--splits", "--tokenizer", "--report", "--preview", "--no_images"):
        assert option in out


def test_existing_files_are_replaced_only_with_overwrite(garden, capsys, tmp_path):
    folder = garden(train=[line("a.png")], val=[line("b.png")])
    for option in ("--report", "--preview"):
        file = tmp_path / "mine.txt"
        file.write_text("mine")
        code, _, _ = run(capsys, "check", "--dataset", folder, option, file)
        assert str(code).startswith(
            f"error: {option} {file}: expected a new file, got an existing one; add --overwrite"
        )
        assert file.read_text() == "mine"
        code, _, _ = run(capsys, "check", "--dataset", folder, option, file, "--overwrite")
        assert code == 0
        assert file.read_bytes() != b"mine"


def test_the_report_is_written_before_anything_is_printed(garden, tmp_path, monkeypatch):
    """Printing fails if standard output is closed or cannot show a sentence."""
    folder = garden(train=[line("a.png")], val=[line("b.png")])
    report = tmp_path / "report.json"

    def fail(*_, **__):
        raise OSError("closed")

    monkeypatch.setattr("detris_peft.cli.data.check.print", fail, raising=False)
    with pytest.raises(OSError, match="closed"):
        check(CheckArguments(report=str(report)), DataSource(str(folder)))
    assert json.loads(report.read_text())["ok"]


def test_what_training_will_miss_is_said(garden, capsys):
    folder = garden(train=[line("a.png")], test=[line("b.png")])
    code, out, _ = run(capsys, "check", "--dataset", folder)
    assert code == 0
    assert "no split 'val', which `detris train` needs: add it, make splits with `detris data split`, or" in out
    assert "pass --val_split with one of train, test" in out
    assert out.splitlines()[-1] == "No errors found in these splits, but `detris train` also needs: val."


def test_usage_errors_name_the_nearest_option(capsys):
    code, _, err = run(capsys, "check", "--datasets", "x")
    assert code == 2
    assert err.startswith("error: expected a known option, got --datasets; use --dataset")
    code, _, err = run(capsys, "chek")
    assert code == 2
    assert "use check" in err
