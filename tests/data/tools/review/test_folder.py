"""Folders under review: other lines stay as they are, and reviewers do not lose each other's edits."""

import json
import multiprocessing
import os
import signal
import stat
import threading

import numpy as np
import pytest
from PIL import Image

from detris_peft.data.errors import BadRowError, collect_notices
from detris_peft.data.readers.folder import folder_splits, load_folder
from detris_peft.data.sources import DataSource
from detris_peft.data.tools.review import ChangedLineError, ReviewFolder
from tests.helpers.kills import run_killed

OUTLINE = [2, 1, 6, 1, 6, 4, 2, 4]
ROWS = 6


def line(index, **changes):
    return {"file_name": "a.png", "sentences": [f"object {index}"], "mask": OUTLINE, "ref_id": index, **changes}


def write(folder, text, name="metadata.jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), "navy").save(folder / "a.png")
    (folder / name).write_bytes(text.encode())
    return folder / name


@pytest.fixture
def file(tmp_path):
    text = "".join(json.dumps(line(index, note=[index])) + "\n" for index in range(ROWS))
    return write(tmp_path / "set", text)


def open_folder(file, **options):
    return ReviewFolder(DataSource(str(file.parent)), **options)


def write_sentence(review, index, text):
    """Write the first sentence of an object as another reviewer would see it now."""
    shown = review.lines()[index]
    return review.edit(shown.file, shown.number, shown.version, [(0, text)], shown.bad_mask)


def sentences(file):
    return [json.loads(text)["sentences"] for text in file.read_text().splitlines()]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_all_other_lines_are_kept_byte_by_byte(tmp_path, end, mark):
    lines = [
        json.dumps(line(0)),
        "",
        "not JSON",
        '  {"file_name":"a.png", "sentence": "x\u2028y", "mask": [1.50]} ',
        "[1]",
    ]
    file = write(tmp_path / "set", mark + end.join(lines) + end)
    review = open_folder(file)
    assert [(shown.number, shown.split) for shown in review.lines()] == [(1, "train"), (4, "train")]
    assert len(review.unreadable()) == 2
    assert "line 3: expected a JSON object" in review.unreadable()[0]
    write_sentence(review, 1, "new")
    lines[3] = '  {"file_name":"a.png", "sentence": "new", "mask": [1.50]} '
    assert file.read_bytes().decode() == mark + end.join(lines) + end


@pytest.mark.parametrize("name", ["metadata.json", "metadata.jsonl"])
def test_a_json_array_keeps_its_form(tmp_path, name):
    text = json.dumps([line(index) for index in range(3)], indent=2)
    file = write(tmp_path / "set", text, name)
    review = open_folder(file)
    shown = review.lines()[1]
    assert (shown.file, shown.number) == (name, 2)
    review.edit(shown.file, 2, shown.version, [(0, "new")], True)
    assert file.read_text() == text.replace('[\n      "object 1"\n    ]', '["new"]').replace(
        '"ref_id": 1\n', '"ref_id": 1, "bad_mask": true\n'
    )
    assert [row["sentences"] for row in load_folder(tmp_path / "set")] == [["object 0"], ["object 2"]]


def test_the_objects_of_splits_in_folders_and_in_fields(tmp_path):
    write(tmp_path / "set" / "train", json.dumps(line(0)))
    write(tmp_path / "set" / "val", "\n".join(json.dumps(row) for row in (line(1), line(2, split="test"))))
    source = DataSource(str(tmp_path / "set"))
    found = [(shown.file, shown.number, shown.split) for shown in ReviewFolder(source).lines()]
    train, val = "train/metadata.jsonl", "val/metadata.jsonl"
    assert found == [(train, 1, "train"), (val, 1, "val"), (val, 2, "test")]
    assert [shown.split for shown in ReviewFolder(source, ["test"]).lines()] == ["test"]
    with pytest.raises(ValueError, match=r"--splits all: expected splits of .*train, val, test"):
        ReviewFolder(source, ["all"])


def test_an_edit_of_a_line_that_changed_is_refused(file):
    first, second = open_folder(file), open_folder(file)
    shown = first.lines()[2]
    write_sentence(second, 2, "from the other reviewer")
    with pytest.raises(ChangedLineError, match=r"metadata.jsonl line 3: changed by another reviewer"):
        first.edit(shown.file, shown.number, shown.version, [(0, "mine")], False)
    assert sentences(file)[2] == ["from the other reviewer"]
    assert json.loads(first.lines()[2].text)["sentences"] == ["from the other reviewer"]


def test_a_line_that_moved_is_found(file):
    review = open_folder(file)
    shown = review.lines()[2]
    file.write_text("\n" + "".join(file.read_text().splitlines(keepends=True)[1:]) + json.dumps(line(9)))
    edited, _ = review.edit(shown.file, shown.number, shown.version, [(0, "mine")], False)
    assert edited.number == 3
    file.write_text(json.dumps(line(8)) + "\n" + file.read_text())
    edited, _ = review.edit(edited.file, edited.number, edited.version, [(0, "again")], False)
    assert edited.number == 4
    assert json.loads(file.read_text().splitlines()[3])["sentences"] == ["again"]


def test_identical_lines_are_distinguished_by_their_number_only(tmp_path):
    text = json.dumps({"file_name": "a.png", "sentence": "x", "mask": OUTLINE})
    file = write(tmp_path / "set", f"{text}\n{text}\n")
    review = open_folder(file)
    first, second = review.lines()
    review.edit(second.file, 2, second.version, [(0, "y")], False)
    assert [json.loads(row)["sentence"] for row in file.read_text().splitlines()] == ["x", "y"]
    file.write_text(f"{{}}\n{text}\n\n{text}\n")
    with pytest.raises(ChangedLineError):
        review.edit(first.file, 1, first.version, [(0, "z")], False)


@pytest.mark.parametrize("name", ["../secret.jsonl", "/etc/passwd", "", None, 3])
def test_other_files_are_refused(file, name):
    (file.parent.parent / "secret.jsonl").write_text(json.dumps(line(0)))
    with pytest.raises(ValueError, match=r"file: expected one of metadata\.jsonl"):
        open_folder(file).edit(name, 1, "", [], False)


def test_a_link_and_the_permissions_are_kept(file):
    target = file.parent.parent / "real.jsonl"
    file.rename(target)
    file.symlink_to(target)
    target.chmod(0o664)
    write_sentence(open_folder(file), 0, "new")
    assert file.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o664
    assert sentences(target)[0] == ["new"]


def edit_many(file, indices, edits):
    review = open_folder(file)
    for number in range(edits):
        for index in indices:
            write_sentence(review, index, f"object {index} edit {number}")


def test_edits_of_two_processes_and_their_threads_are_all_kept(file):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=edit_many, args=(file, [index], 15)) for index in (0, 1)]
    threads = [threading.Thread(target=edit_many, args=(file, [index], 15)) for index in (2, 3)]
    for worker in (*processes, *threads):
        worker.start()
    for worker in (*processes, *threads):
        worker.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sentences(file) == [[f"object {i} edit 14"] if i < 4 else [f"object {i}"] for i in range(ROWS)]
    assert [json.loads(text)["note"] for text in file.read_text().splitlines()] == [[i] for i in range(ROWS)]


def test_two_reviewers_of_one_line_see_each_edit_or_are_told(file):
    """Of edits that start from the same text exactly one is saved."""
    reviews = [open_folder(file) for _ in range(4)]
    shown = reviews[0].lines()[0]
    saved, barrier = [], threading.Barrier(4)

    def edit(number):
        barrier.wait()
        try:
            reviews[number].edit(shown.file, shown.number, shown.version, [(0, f"reviewer {number}")], False)
            saved.append([f"reviewer {number}"])
        except ChangedLineError:
            pass

    threads = [threading.Thread(target=edit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [sentences(file)[0]] == saved


def test_a_kill_at_any_operation_of_a_save_keeps_the_old_or_the_new_file(file):
    old = file.read_text()
    new = old.replace('["object 1"]', '["killed"]')
    seen = set()
    for at in range(1, 100):
        file.write_text(old)
        review = open_folder(file)
        killed = run_killed(lambda review=review: write_sentence(review, 1, "killed"), at)
        assert file.read_text() in (old, new)
        seen.add(file.read_text())
        assert folder_splits(file.parent) == ["train"]  # what the kill left is no split
        assert len(load_folder(file.parent)) == ROWS
        write_sentence(open_folder(file), 1, "after the kill")
        assert sentences(file)[1] == ["after the kill"]
        assert sorted(path.name for path in file.parent.iterdir()) == ["a.png", "metadata.jsonl"]
        if not killed:
            break
    assert seen == {old, new}
    assert at > 3


@pytest.mark.parametrize("saves", [1, 4, 9])
def test_kill_9_while_typing_loses_at_most_the_last_keystroke(file, saves):
    """The process reports each keystroke that is saved; it is killed during one of the next."""
    receiver, sender = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            review = open_folder(file)
            for length in range(1, 10_000):
                write_sentence(review, 0, "x" * length)
                os.write(sender, b"s")
        finally:
            os._exit(1)
    os.close(sender)
    reported = sum(len(os.read(receiver, 1)) for _ in range(saves))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while more := os.read(receiver, 1000):
        reported += len(more)
    os.close(receiver)
    assert sentences(file)[0] in (["x" * reported], ["x" * (reported + 1)])
    assert sentences(file)[1:] == [[f"object {i}"] for i in range(1, ROWS)]


def test_the_reader_skips_flagged_lines_with_a_notice(file):
    review = open_folder(file)
    shown = review.lines()[1]
    review.edit(shown.file, shown.number, shown.version, [(0, None)], True)
    with collect_notices() as notices:
        rows = load_folder(file.parent)
    assert rows["ref_id"] == [0, 2, 3, 4, 5]
    assert [kind for kind, _ in notices] == ["bad_mask"]
    assert "metadata.jsonl line 2: not used, because 'bad_mask' is true" in notices[0][1]
    assert [shown.bad_mask for shown in review.lines()] == [False, True, False, False, False, False]


def test_images_and_masks_are_those_of_the_dataset(tmp_path):
    outside = tmp_path / "outside.png"
    Image.new("RGB", (8, 6), "red").save(outside)
    rows = [line(0), line(1, file_name="../outside.png"), line(2, mask="../mask.png"), line(3, file_name="no.png")]
    file = write(tmp_path / "set", "\n".join(json.dumps(row) for row in [*rows, line(4, no_target=True, mask=None)]))
    Image.fromarray(np.eye(6, 8) > 0).save(tmp_path / "mask.png")
    review = open_folder(file)
    lines = review.lines()
    image, mask = review.image_and_mask(lines[0])
    assert image.size == (8, 6)
    assert mask.sum() == 12
    assert review.image_and_mask(lines[4])[1].sum() == 0
    for index, message in ((1, "--allow_outside to `detris data review`"), (2, "mask.png is not in"), (3, "missing")):
        with pytest.raises(BadRowError, match=message):
            review.image_and_mask(lines[index])
    review = open_folder(file, allow_outside=True)
    assert review.image_and_mask(lines[1])[0].getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("content", ['{"images": [], "annotations": []}'])
def test_other_formats_name_the_command_that_writes_the_folder(tmp_path, content):
    (tmp_path / "coco.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"expected a folder with metadata.jsonl, got .*`detris data describe`.*split"
    ):
        ReviewFolder(DataSource(str(tmp_path / "coco.json")))
