"""Rows of a prediction job: what the options and tables name, in which order, and which rows are invalid."""

from __future__ import annotations

import json
from io import BytesIO

import pytest

from detris_peft.prediction.pairs import cross_pairs, list_images, read_pairs

NOTHING = BytesIO()


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A working directory with a folder of empty files, whose content is not read here."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.jpg", "a.PNG", "c.tiff", ".hidden.jpg", "notes.txt", "deeper/d.jpg"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path


def test_folders_globs_urls_and_files_keep_the_order_of_the_options(photos):
    values = ["https://x.org/a.jpg?size=1", "photos", "photos/*.jpg", "none.jpg", "photos/**/*.jpg"]
    images, notices = list_images(values, NOTHING)
    assert images == [
        "https://x.org/a.jpg?size=1",
        *("photos/a.PNG", "photos/b.jpg", "photos/c.tiff"),
        "photos/b.jpg",
        "none.jpg",
        *("photos/b.jpg", "photos/deeper/d.jpg"),
    ]
    assert notices == ["photos: 3 images, 1 other file", "photos/*.jpg: 1 file", "photos/**/*.jpg: 2 files"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(photos):
    (photos / "photo[1].jpg").touch()
    assert list_images(["photo[1].jpg"], NOTHING) == (["photo[1].jpg"], [])


def test_paths_on_the_standard_input(photos):
    assert list_images(["-", "z.jpg"], BytesIO(b"a.jpg\r\n\nd e.jpg"))[0] == ["a.jpg", "d e.jpg", "z.jpg"]
    assert list_images(["-"], BytesIO(b" a.jpg \ncaf\xe9.jpg"))[0] == [" a.jpg ", "caf\udce9.jpg"]
    assert "expected a name in UTF-8" in str(cross_pairs(["caf\udce9.jpg"], ["left"])[0].error)
    with pytest.raises(ValueError, match=r"got other bytes in line 1; pass the path of an image, not its content"):
        list_images(["-"], BytesIO(b"\x89PNG\r\n\x1a\n\0\0"))
    with pytest.raises(ValueError, match=r"--image -: expected one path per line, got none"):
        list_images(["-"], BytesIO(b"\n"))


def test_every_text_on_every_image():
    pairs = cross_pairs(["a.jpg", "b.jpg"], ["left", "right"])
    assert [(pair.source, pair.text) for pair in pairs] == [
        *(("a.jpg", "left"), ("a.jpg", "right")),
        *(("b.jpg", "left"), ("b.jpg", "right")),
    ]


def test_csv_paths_are_relative_to_the_file_and_duplicates_stay(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text(
        "\ufeffnumber,text,image\n1,left,a.jpg\n\n1,left,a.jpg\n"
        '2,"the red, round one",/b.jpg\n3,up,http://x.org/c.jpg\n'
    )
    pairs = read_pairs(str(file), NOTHING)
    assert [pair.image for pair in pairs] == ["a.jpg", "a.jpg", "/b.jpg", "http://x.org/c.jpg"]
    assert [pair.source for pair in pairs] == [f"{tmp_path}/a.jpg"] * 2 + ["/b.jpg", "http://x.org/c.jpg"]
    assert pairs[2].text == "the red, round one"
    assert read_pairs(str(file), NOTHING, "root")[0].source == "root/a.jpg"


BAD_ROWS = {
    "a.jpg,one,two": "line 3: expected 2 columns, got 3; put text with ',' in double quotes",
    "a.jpg": "line 3: expected 2 columns, got 1",
    ",left": "line 3: image: expected a path or URL, got ''",
    "a.jpg, ": "line 3: text: expected a sentence",
    "a.jpg,&nbsp;": "line 3: text: expected a sentence",
    "ftp://x.org/a.jpg,left": "line 3: image: expected a URL that starts with http:// or https://",
    'a.jpg,"left"x': "line 3: expected CSV, got an error",
    'a.jpg,"left\nb.jpg,right\n"': "lines 3 to 5: expected one line, got a line break; check its quotes",
    "a\udcff.jpg,left": "line 3: image: expected a name in UTF-8",
    "a.jpg,left\udcff": "line 3: text: expected text, got half of a surrogate pair",
    "a.jpg," + "x" * 140_000: "line 3: expected CSV, got an error",
}


@pytest.mark.parametrize("row", BAD_ROWS, ids=lambda row: ascii(row)[:20])
def test_a_bad_csv_row_in_the_middle_is_the_only_error(tmp_path, row):
    file = tmp_path / "pairs.csv"
    text = f"image,text\nfirst.jpg,first\n{row}\nlast.jpg,last\n"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    first, bad, last = read_pairs(str(file), NOTHING)
    assert (first.error, last.error) == (None, None)
    assert (first.text, last.text) == ("first", "last")
    assert bad.error is not None
    assert f"{file}, {BAD_ROWS[row]}" in bad.error
    json.dumps([bad.image, bad.text, bad.error], ensure_ascii=False).encode()  # can be written to errors.jsonl


def test_a_bad_line_of_json_is_the_only_error():
    bad = [b"{", b"[1]", b'{"image": "a.jpg"}', b'{"image": 1, "text": "x"}', b"\xff", b'{"image": "a", "text": ""}']
    lines = [
        b'\xef\xbb\xbf{"image": "first.jpg", "text": "\xc3\xa9", "id": 3}',
        *bad,
        b'{"image": "b", "text": "z"}',
        b"",
    ]
    pairs = read_pairs("-", BytesIO(b"\n".join(lines)))
    assert [pair.text for pair in pairs if pair.error is None] == ["é", "z"]
    errors = [pair.error for pair in pairs if pair.error is not None]
    for number, error in enumerate(errors, 2):
        assert f"stdin, line {number}: " in error
    assert len(errors) == len(bad)
