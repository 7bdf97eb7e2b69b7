"""Jobs without a model: what a kill at any byte, a full disk, Ctrl-C or another number of ranks leaves."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from detris_peft.prediction import job_files
from detris_peft.prediction.job_files import JobFiles, ResultWriter
from detris_peft.prediction.jobs import JobPlan, plan_job, run_job
from detris_peft.prediction.pairs import Pair
from detris_peft.prediction.row_predictor import RowResult

PAIRS = [Pair(f"{row}.jpg", "red", f"{row}.jpg") for row in range(8)]
FAILED = {0, 4, 7}
FINGERPRINT = {"number_of_rows": len(PAIRS), "threshold": 0.35, "rows_sha256": "abc"}
FINGERPRINT |= {"weights_sha256": "123", "checkpoint": "runs/a"}


class Predict:
    """Replacement for `RowPredictor.stream`; records the rows, and raises at one of them."""

    def __init__(self, fail_at=None, error=None):
        self.rows, self.fail_at, self.error = [], fail_at, error

    def __call__(self, batches):
        for rows in batches:
            numbers = [row for row, _ in rows]
            if self.fail_at in numbers:
                raise self.error
            self.rows += numbers
            yield [result(row) for row in numbers]


def result(row):
    return RowResult(row, json.dumps({"row": row + 1, "image": PAIRS[row].image}), row in FAILED)


def run(output: Path, resume=True, predict=None, batch_size=3, fingerprint=FINGERPRINT):
    predict = predict or Predict()
    done = run_job(predict, PAIRS, JobFiles(output), fingerprint, batch_size=batch_size, resume=resume)
    return predict.rows, done


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_in(content: bytes) -> list[int]:
    return [json.loads(line)["row"] - 1 for line in content.splitlines()]


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """The files of a job that was not interrupted."""
    folder = tmp_path_factory.mktemp("jobs") / "complete"
    rows, done = run(folder)
    assert rows == [*range(8)]
    assert (done.predicted, done.failed, done.earlier) == (5, 3, 0)
    return folder


def test_results_and_errors_are_in_the_order_of_the_rows(complete):
    files = contents(complete)
    assert set(files) == {"predictions.jsonl", "errors.jsonl", "job.json", ".detris_peft"}
    assert rows_in(files["predictions.jsonl"]) == [1, 2, 3, 5, 6]
    assert rows_in(files["errors.jsonl"]) == [0, 4, 7]


def test_a_json_lines_file_as_output_has_its_errors_next_to_it(complete, tmp_path):
    run(tmp_path / "x.jsonl")
    assert set(contents(tmp_path)) == {"x.jsonl", "x_errors.jsonl", "x_job.json"}
    assert JobFiles(f"{tmp_path}/y.jsonl/").predictions == tmp_path / "y.jsonl/predictions.jsonl"
    assert (tmp_path / "x.jsonl").read_bytes() == (complete / "predictions.jsonl").read_bytes()


def written_states(complete):
    """Yield (predictions, errors) after each byte that the job writes: per batch its errors, then its predictions."""
    files = contents(complete)
    predictions, errors = (files[name].splitlines(keepends=True) for name in ("predictions.jsonl", "errors.jsonl"))
    predicted = failed = b""
    for failures, successes in ((1, 2), (1, 2), (1, 1)):  # per batch
        new, errors = b"".join(errors[:failures]), errors[failures:]
        yield from ((predicted, failed + new[:size]) for size in range(len(new)))
        failed += new
        new, predictions = b"".join(predictions[:successes]), predictions[successes:]
        yield from ((predicted + new[:size], failed) for size in range(len(new)))
        predicted += new
    yield predicted, failed


def test_a_job_that_was_killed_at_any_byte_continues_to_the_same_files(complete, tmp_path):
    folder = tmp_path / "job"
    shutil.copytree(complete, folder)
    expected, counts = contents(complete), set()
    for predictions, errors in [*written_states(complete)][::3]:
        (folder / "predictions.jsonl").write_bytes(predictions)
        (folder / "errors.jsonl").write_bytes(errors)
        rows, _ = run(folder)
        assert contents(folder) == expected
        done = {*rows_in(predictions[: predictions.rfind(b"\n") + 1]), *rows_in(errors[: errors.rfind(b"\n") + 1])}
        assert len(done & {*rows}) < 3  # only a part of a batch is predicted again
        counts.add(len(rows))
    assert counts == {2, 5, 8}


def test_a_finished_job_is_not_repeated(complete):
    assert run(complete)[0] == []


def test_parts_of_ranks_that_were_killed_continue_with_any_number_of_ranks(complete, tmp_path):
    """One rank wrote the batches 0 and 2, the other one batch 1; both were cut somewhere."""
    expected = contents(complete)
    folder = tmp_path / "job"
    files = JobFiles(folder)
    plan_job_once(files)
    for rank in (0, 1):
        with ResultWriter(files, rank) as writer:
            for batch in JobPlan(8, 3).batches[rank::2]:
                writer.write([result(row) for row in JobPlan(8, 3).rows_of(batch)])
    parts = {rank: files.part(rank).read_bytes() for rank in (0, 1)}
    template = tmp_path / "template"
    shutil.copytree(folder, template)
    for cut in (*range(0, len(parts[0]), 31), len(parts[0])):
        for second in (b"", parts[1][:-1], parts[1]):
            shutil.rmtree(folder)
            shutil.copytree(template, folder)
            files.part(0).write_bytes(parts[0][:cut])
            files.part(1).write_bytes(second)
            rows, done = run(folder)
            assert contents(folder) == expected
            assert (3 in rows) == (second != parts[1])
            assert done.earlier == 8 - len(rows)
    assert rows == []


def plan_job_once(files):
    with files.locked():
        return plan_job(files, FINGERPRINT, 8, 3, resume=False)


def test_a_consolidation_that_was_killed_repeats_no_row(complete, tmp_path):
    """The merged part is written before the parts of the ranks are removed."""
    files = JobFiles(tmp_path / "job")
    plan_job_once(files)
    with ResultWriter(files, 1) as writer:
        writer.write([result(row) for row in (3, 4, 5)])
    shutil.copy(files.part(1), files.parts / "done.jsonl")
    rows, _ = run(tmp_path / "job")
    assert rows == [0, 1, 2, 6, 7]
    assert contents(tmp_path / "job") == contents(complete)


def test_another_batch_size_continues_from_its_own_batches(complete, tmp_path):
    shutil.copytree(complete, tmp_path / "job")
    (tmp_path / "job/predictions.jsonl").write_bytes(b"".join(line(complete, row) for row in (1, 2, 3)))
    rows, _ = run(tmp_path / "job", batch_size=2)
    assert rows == [4, 5, 6, 7]
    assert contents(tmp_path / "job") == contents(complete)


def line(folder, row):
    lines = (folder / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    return next(line for line in lines if json.loads(line)["row"] == row + 1)


class FullDisk:
    """A file that takes some bytes and is then full."""

    def __init__(self, stream, room):
        self.stream, self.room = stream, room

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, content):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.stream.write(content[: self.room])
        self.room -= written
        return written


def test_a_full_disk_keeps_complete_lines_and_says_how_to_continue(complete, tmp_path, monkeypatch):
    real = job_files._append
    room = len((complete / "predictions.jsonl").read_bytes()) - 20

    def append(stream, lines, file):
        nonlocal room
        disk = FullDisk(stream, room)
        real(disk, lines, file)
        room = disk.room

    monkeypatch.setattr(job_files, "_append", append)
    with pytest.raises(OSError, match=r"No space left on device\); free some space .* continue with --resume"):
        run(tmp_path / "job")
    monkeypatch.undo()
    kept = (tmp_path / "job/predictions.jsonl").read_bytes()
    assert rows_in(kept) == [1, 2]
    assert kept.endswith(b"\n")
    run(tmp_path / "job")
    assert contents(tmp_path / "job") == contents(complete)


def test_an_interrupt_says_how_to_continue(complete, tmp_path):
    with pytest.raises(KeyboardInterrupt, match="job: interrupted; continue with --resume"):
        run(tmp_path / "job", predict=Predict(4, KeyboardInterrupt()))
    rows, done = run(tmp_path / "job")
    assert rows == [3, 4, 5, 6, 7]
    assert done.earlier == 3
    assert contents(tmp_path / "job") == contents(complete)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("threshold", 0.5, r"threshold: expected 0.35, as in the interrupted job, got 0.5"),
        ("number_of_rows", 9, r"number of rows: expected 8"),
        (
            "weights_sha256",
            "def",
            r"checkpoint: expected the weights of runs/a, as in the interrupted",
        ),
        ("rows_sha256", "def", r"rows: expected the same images and texts, as in the interrupted job, got others"),
    ],
)
def test_another_job_is_not_continued(complete, name, value, expected):
    before = contents(complete)
    with pytest.raises(ValueError, match=expected):
        run(complete, fingerprint={**FINGERPRINT, name: value})
    assert contents(complete) == before


def test_two_processes_do_not_write_the_same_results(complete, tmp_path):
    shutil.copytree(complete, tmp_path / "job")
    with JobFiles(tmp_path / "job").locked(), pytest.raises(OSError, match="another process is writing to it"):
        run(tmp_path / "job", resume=False)
    assert contents(tmp_path / "job") == contents(complete)


def test_inputs_in_the_output_folder_are_not_overwritten(complete, tmp_path):
    shutil.copytree(complete, tmp_path / "job")
    files = JobFiles(tmp_path / "job")
    with pytest.raises(ValueError, match="expected another path than that of the input"):
        files.check([tmp_path / "job/errors.jsonl"], overwrite=True, resume=False)
    with pytest.raises(ValueError, match="add --overwrite, or --resume to continue it"):
        files.check([], overwrite=False, resume=False)
    files.check(["photo.jpg", "https://x.org/a.jpg"], overwrite=True, resume=False)


@pytest.mark.parametrize(
    ("output", "left"),
    [
        ("job", {}),
        ("job", {".detris_peft": ""}),  # a full disk, too
        ("job", {".detris_peft": "predictions\n"}),
        ("job", {".detris_peft": "predictions\n", "predictions.jsonl": ""}),
        ("job/x.jsonl", {"x.jsonl": ""}),
    ],
)
def test_a_job_that_was_killed_while_it_started_can_be_resumed(complete, tmp_path, output, left):
    (tmp_path / "job").mkdir()
    for name, content in left.items():
        (tmp_path / "job" / name).write_text(content)
    JobFiles(tmp_path / output).check([], overwrite=False, resume=True)
    assert run(tmp_path / output)[0] == [*range(8)]
    if output == "job":
        assert contents(tmp_path / "job") == contents(complete)


def test_results_without_their_job_are_not_replaced_by_resume(complete, tmp_path):
    shutil.copytree(complete, tmp_path / "job")
    (tmp_path / "job/job.json").unlink()
    with pytest.raises(ValueError, match=r"--resume: expected .*job.json of an interrupted job"):
        JobFiles(tmp_path / "job").check([], overwrite=False, resume=True)


def test_a_list_of_errors_that_was_edited_is_an_error_in_one_line(complete, tmp_path):
    shutil.copytree(complete, tmp_path / "job")
    for text, expected in (('{"row": "5"}', "expected rows as this job wrote them"), ("{", "expected JSON")):
        (tmp_path / "job/errors.jsonl").write_text(f"{text}\n")
        before = contents(tmp_path / "job")
        with pytest.raises(ValueError, match=expected) as raised:
            run(tmp_path / "job")
        assert "\n" not in str(raised.value)
        assert contents(tmp_path / "job") == before
