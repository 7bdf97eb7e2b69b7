"""Recognizing files of labeling tools, and finding the images that they name."""

from pathlib import Path

import pytest

from detris_peft.data.errors import BadRowError
from detris_peft.data.readers.labels.files import (
    ImageFinder,
    check_once,
    files_of_splits,
    head_keys,
    head_tags,
    image_with_stem,
    read_file_name,
    split_folders,
)


@pytest.mark.parametrize(
    ("text", "kind", "keys"),
    [
        ('{"a": {"b": 1}, "c": ["d", {"e": 2}]}', "object", {"a", "c"}),
        ('\ufeff [{"a": "b"}, {"c": 1}]', "list", {"a"}),
        (r'{"with \"quotes\": and {": 1, "text": "{[\"}"}', "object", {r"with \"quotes\": and {", "text"}),
        ('["a", "b"]', "list", set()),
        ("{}", "object", set()),
        ("<xml>", "", set()),
        ("", "", set()),
        ('{"cut": [1, 2', "object", {"cut"}),
        (r'{"cut": 1, "te\"xt\\', "object", {"cut"}),
        ('{"quotes": "' + r"\"" * 300_000, "object", {"quotes"}),
    ],
)
def test_keys_at_the_start_of_a_json_file(tmp_path, text, kind, keys):
    file = tmp_path / "a.json"
    file.write_text(text, encoding="utf-8")
    assert head_keys(file) == (kind, keys)


def test_keys_of_a_file_that_changes_or_does_not_exist(tmp_path):
    file = tmp_path / "a.json"
    assert head_keys(file) == ("", frozenset())
    for name in ("first", "the_second"):
        file.write_text(f'{{"{name}": 1}}')
        assert head_keys(file) == ("object", {name})
    file.write_text('{"wide": 1}', encoding="utf-16")
    assert head_keys(file) == ("object", {"wide"})
    file.write_text('{"first": "' + "x" * (1 << 20) + '", "after the limit": 1}')
    assert head_keys(file)[1] <= {"first"}


def test_images_are_found_by_path_or_by_a_unique_name(tmp_path):
    for name in ("photos/a.jpg", "photos/b.jpg", "other/b.jpg", "labels/a.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    finder = ImageFinder(tmp_path)
    assert finder.find("photos/a.jpg") == finder.find(r"photos\a.jpg") == tmp_path / "photos" / "a.jpg"
    assert finder.find(r"..\photos\a.jpg", near=tmp_path / "labels") == tmp_path / "photos" / "a.jpg"
    assert finder.find(r"C:\Users\me\a.jpg") == tmp_path / "photos" / "a.jpg"
    assert finder.find("b.jpg") == tmp_path / "b.jpg"  # two files have the name: the error will name this path
    assert finder.find("b.jpg", near=tmp_path / "other") == tmp_path / "other" / "b.jpg"
    assert finder.relative(tmp_path / "photos" / "a.jpg") == "photos/a.jpg"


def test_folders_of_splits(tmp_path):
    for name in ("Train", "valid", "test", "images"):
        (tmp_path / name).mkdir()
    assert split_folders(tmp_path) == {
        "train": tmp_path / "Train",
        "val": tmp_path / "valid",
        "test": tmp_path / "test",
    }
    assert split_folders(tmp_path / "missing") == {}


@pytest.mark.parametrize(
    ("content", "tags"),
    [
        (b"<?xml version='1.0'?><!-- <no> --><a x='<'><b/><ns:c>", ["no", "a", "b", "ns:c"]),
        ("<a><b>é</b></a>".encode("utf-16"), ["a", "b"]),
        (b"{}", []),
        (b"", []),
    ],
)
def test_elements_at_the_start_of_an_xml_file(tmp_path, content, tags):
    (tmp_path / "a.xml").write_bytes(content)
    assert head_tags(tmp_path / "a.xml") == tags
    assert head_tags(tmp_path / "gone.xml") == []


def test_files_of_splits(tmp_path):
    for name in ("b.xml", "a.xml", "a.txt", "no.xml", "valid/c.xml", "other/d.xml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = files_of_splits(tmp_path, (".xml",), lambda file: file.stem != "no")
    assert found == [(tmp_path / "a.xml", "train"), (tmp_path / "b.xml", "train"), (tmp_path / "valid/c.xml", "val")]
    assert files_of_splits(tmp_path, (".xml",), lambda file: file.stem != "a", limit=1) == found[2:]
    assert files_of_splits(tmp_path / "no.xml", (), lambda file: False) == [(tmp_path / "no.xml", "train")]
    assert files_of_splits(None, (".xml",), lambda file: True) == []


def test_each_image_is_labeled_once():
    seen = {}
    for name in ("a.png", "b.png"):
        check_once(Path("photos", name), f"labels of {name}", seen)
    with pytest.raises(
        BadRowError, match=r"^more: expected the labels of a\.png in one place, got some in labels of a"
    ):
        check_once(Path("photos/a.png"), "more", seen)


@pytest.mark.parametrize("name", [None, 5, "", "a\nb.png", ["a.png"]])
def test_names_of_images_are_text_of_one_line(name):
    assert read_file_name("photos/a b.png", "a") == "photos/a b.png"
    with pytest.raises(BadRowError, match="a: expected a file name, got"):
        read_file_name(name, "a")


def test_images_with_suffixes_in_upper_case(tmp_path):
    assert image_with_stem(tmp_path / "a.b") is None
    for name in ("a.b.JPG", "a.b.txt"):
        (tmp_path / name).touch()
    assert image_with_stem(tmp_path / "a.b") == tmp_path / "a.b.JPG"
    assert image_with_stem(tmp_path / ("x" * 300)) is None
