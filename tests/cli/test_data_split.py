"""`detris data split`: printed table, near-duplicates and notices, the JSON report, and what training reads."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from detris_peft.cli import main
from tests.data.tools.split_files import photo, photos, write_photos


@pytest.fixture
def album(tmp_path):
    """Twelve images; five are copies of one of them."""
    images = photos(7)
    images |= {f"copy-{side}.png": photo(2).resize((side, side), Image.Resampling.BILINEAR) for side in range(40, 45)}
    write_photos(tmp_path / "album" / "train", images, references=2)
    return tmp_path


def run(folder, *arguments):
    try:
        main(["data", "split", "--dataset", f"{folder}/album", "--output", f"{folder}/out", *map(str, arguments)])
    except SystemExit as exit_:
        return exit_.code
    return 0


def test_table_and_near_duplicates_are_printed_and_the_result_passes_check(album, capsys):
    assert run(album, "--fractions", 0.5, 0.25, 0.25, "--report", album / "report.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"wrote {album}/out"
    assert lines[2].split() == ["split", "images", "references", "sentences", "share"]
    assert [line.split() for line in lines[3:6]] == [
        ["train", "6", "12", "12", "50.0%"],
        ["val", "3", "6", "6", "25.0%"],
        ["test", "3", "6", "6", "25.0%"],
    ]
    assert lines[7] == "near-duplicates: 6 images in 1 group, each in one split"
    group = [f"train/images/{name}.png" for name in ("002", "copy-40", "copy-41")]
    assert lines[8] == f"  {', '.join(group)} and 3 more"
    assert lines[-1] == f"wrote {album}/report.json"
    main(["data", "check", "--dataset", str(album / "out")])
    assert "No errors found." in capsys.readouterr().out


def test_the_report_lists_everything(album):
    assert run(album, "--fractions", 0.8, 0.2, "--seed", 3, "--report", album / "report.json") == 0
    report = json.loads((album / "report.json").read_text(encoding="utf-8"))
    assert (report["dataset"], report["output"]) == (f"{album}/album", f"{album}/out")
    assert (report["seed"], report["max_distance"], report["renumbered"], report["flagged"]) == (3, 12, False, 0)
    assert [*report["splits"]] == ["train", "val"]
    assert sum(split["references"] for split in report["splits"].values()) == 24
    assert sum(split["share"] for split in report["splits"].values()) == pytest.approx(1)
    assert [split["fraction"] for split in report["splits"].values()] == [0.8, 0.2]
    (group,) = report["near_duplicates"]
    assert len(group["images"]) == 6
    assert group["source_splits"] == ["train"]


def test_without_near_duplicates_and_with_several_groups(album, capsys):
    assert run(album, "--max_distance", 0) == 0
    assert "near-duplicates" in capsys.readouterr().out
    for number in range(3, 7):
        photo(number).resize((60, 60)).save(album / "album" / "train" / f"00{number}b.png")
    file = album / "album" / "train" / "metadata.jsonl"
    lines = [
        json.dumps({"file_name": f"00{number}b.png", "sentence": "it", "mask": [9, 9, 30, 9, 30, 30]}) + "\n"
        for number in range(3, 7)
    ]
    file.write_text(file.read_text() + "".join(lines))
    assert run(album, "--overwrite", "--fractions", 0.6, 0.4) == 0
    out = capsys.readouterr().out
    assert "near-duplicates: 14 images in 5 groups, each in one split\n" in out
    assert "  ... and 2 more; --report lists all\n" in out


def test_control_characters_of_names_are_not_printed(tmp_path, capsys):
    images = {**photos(4), "a\x1b[31m.png": photo(0)}
    write_photos(tmp_path / "album" / "train", images)
    assert run(tmp_path) == 0
    assert "images/a?[31m.png" in capsys.readouterr().out


def test_outputs_are_replaced_only_with_overwrite(album):
    report = album / "report.json"
    assert run(album, "--report", report) == 0
    assert f"--report {report}: expected a new file" in run(album, "--report", report)
    assert f"--output {album}/out: expected a new folder" in run(album)
    assert run(album, "--report", report, "--overwrite") == 0
    assert "not in --output" in run(album, "--report", album / "out" / "report.json", "--overwrite")


def test_skipped_rows_are_listed(album, capsys):
    (album / "album" / "train" / "001.png").write_bytes(b"no image")
    assert "001.png" in run(album)
    assert not (album / "out").exists()
    assert run(album, "--skip_bad_rows") == 0
    out = capsys.readouterr().out
    assert "skipped 2 invalid rows\n" in out
    assert "image_damaged: 2" in out
