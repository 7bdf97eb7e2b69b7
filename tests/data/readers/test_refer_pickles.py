"""REFER references written by Python 2, in mixed encodings and with converted line ends."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from detris_peft.cli import main
from detris_peft.data.readers.refer import load_refer
from detris_peft.data.sources import DataSource

# Two references as cPickle of Python 2 writes them, with sentences as byte strings: one in UTF-8, one in Latin-1.
REFERENCES = b"".join(
    b"(dp%d\nS'ref_id'\nI%d\nsS'ann_id'\nI1\nsS'image_id'\nI1\nsS'category_id'\nI1\nsS'split'\nS'train'\n"
    b"sS'sentences'\n(l(dS'sent_id'\nI%d\nsS'sent'\nS'%s'\nsasS'note'\nS'%s'\nsa"
    % (number + 1, number, number, text, note)
    for number, (text, note) in enumerate([(b"caf\\xc3\\xa9", b"\\xe9"), (b"\\xe0 gauche", b"\\xc3\\xa9")])
)


@pytest.fixture
def toys(tmp_path):
    """A dataset of one image with the references above."""
    (tmp_path / "images" / "train2014").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(tmp_path / "images" / "train2014" / "a.jpg")
    folder = tmp_path / "toys"
    folder.mkdir()
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[2, 2, 12, 2, 12, 12]]}
    content = {"images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 20}], "annotations": [annotation]}
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "refs(unc).p").write_bytes(b"(lp0\n" + REFERENCES + b".")
    return folder


def test_a_latin_1_string_does_not_garble_the_utf_8_strings(toys):
    assert load_refer(toys.parent, "toys", "unc", "train")["sentences"][:] == [["café"], ["à gauche"]]


def test_converted_line_ends_are_read(toys):
    file = toys / "refs(unc).p"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert load_refer(toys.parent, "toys", "unc", "train")["sentences"][:] == [["café"], ["à gauche"]]


def test_a_value_that_expands_in_an_error_message_is_refused(toys, capsys):
    """Lists that share lists, 40 levels deep: 250 bytes that took minutes to print."""
    bomb = b"](](q\x00" + b"".join(b"e](h%ch%ceq%c" % (i, i, i + 1) for i in range(40))
    (toys / "refs(unc).p").write_bytes(b"](}(X\x06\x00\x00\x00ref_id" + bomb.replace(b"e](", b"0](", 1) + b"eue.")
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", "--dataset", "toys", "--data_root", str(toys.parent)])
    assert str(ended.value.code).startswith("error: ")
    assert "refs(unc).p: expected a pickle" in str(ended.value.code)


def test_a_dataset_is_found_by_its_absolute_path(toys, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    source = DataSource(dataset=str(toys))
    assert source.splits() == ["train"]
    assert source.load("train")["ref_id"][:] == [0, 1]
