"""Checkpoints and example images that the page is started with."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from detris_peft.demo.sources import CheckpointSource, read_examples, with_distinct_titles


def test_examples_are_images_with_the_first_sentence_of_each_object(tmp_path):
    for i in range(14):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i:02}.png")
    (tmp_path / "notes.txt").write_text("no image")
    assert [file.name for file, _ in read_examples(tmp_path)] == [f"{i:02}.png" for i in range(12)]
    lines = [
        {"file_name": "03.png", "sentences": ["the left lion", "lion"], "mask": "04.png"},
        {"file_name": "03.png", "sentence": "the tree"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert read_examples(tmp_path) == [(tmp_path / "03.png", "the left lion\nthe tree")]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "sentence": "x"}\n{"file_name": 3}\n')
    with pytest.raises(ValueError, match=r"metadata.jsonl:2: expected an object with 'file_name'"):
        read_examples(tmp_path)


def test_titles_do_not_show_other_folders():
    assert CheckpointSource("/home/me/secret/run/best").title == "run/best"
    assert CheckpointSource("user/name", subfolder="best").title == "name/best"
    assert CheckpointSource("user/name").title == "user/name"
    assert CheckpointSource("/best").title == "best"


def test_title_of_a_relative_folder(tmp_path, monkeypatch):
    (tmp_path / "run" / "best").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run" / "best")
    assert CheckpointSource(".").title == "run/best"
    assert CheckpointSource("..").title == f"{tmp_path.name}/run"


@pytest.mark.parametrize(
    ("names", "titles"),
    [
        (("a/run/best", "b/other/best"), ["run/best", "other/best"]),
        (("/x/a/run/best", "/x/b/run/best"), ["a/run/best", "b/run/best"]),
        (("user/name", "user/name"), ["user/name (1)", "user/name (2)"]),
    ],
)
def test_compared_checkpoints_have_different_titles(names, titles):
    sources = with_distinct_titles([*map(CheckpointSource, names)])
    assert [source.title for source in sources] == titles
    assert [source.name for source in sources] == [*names]
