"""`detris predict` for many rows: JSON Lines, images, failed rows, continued jobs, several ranks and Ray."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detris_peft.cli import main
from detris_peft.data.masks import decode_mask
from detris_peft.prediction import DetrisPredictor
from tests.helpers import toy_run
from tests.helpers.tiny_models import perturb

REPOSITORY = Path(__file__).parents[2]
TEXTS = ["the red circle", "the large square on the left"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a tiny checkpoint, six photos of different sizes, and a table of pairs with invalid rows."""
    root = toy_run.write_toys(tmp_path_factory.mktemp("predict_many"))
    model = toy_run.load_model(root)
    perturb(model)  # so that the sentence changes the mask
    toy_run.save_checkpoint(root, model)
    (root / "photos").mkdir()
    numbers = np.random.default_rng(0)
    for i in range(6):
        pixels = numbers.integers(0, 256, (30 + 5 * i, 60 - 4 * i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"photos/{i}.png")
    rows = [f"photos/{i % 6}.png,{text}" for i in range(9) for text in TEXTS]
    rows[4], rows[7], rows[12] = "photos/none.png,red", "photos/1.png,", "backbones,red"
    (root / "pairs.csv").write_text("\n".join(["image,text", *rows, rows[0]]) + "\n")
    return root


@pytest.fixture
def folder(work, tmp_path, monkeypatch):
    """The working directory; paths of inputs start with the folder `work`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").symlink_to(work)
    return tmp_path


@pytest.fixture(scope="module")
def predictor(work):
    return DetrisPredictor.from_pretrained(work / "best", device="cpu")


@pytest.fixture(scope="module")
def complete(work):
    """The files of the job for `pairs.csv` without an interruption."""
    fails("--pairs", str(work / "pairs.csv"), "--output", str(work / "complete"), checkpoint=str(work / "best"))
    return contents(work / "complete")


def predict(*words: str, checkpoint="work/best") -> None:
    fixed = ("--device", "cpu", "--precision", "fp32", "--batch_size", "4")
    main(["predict", "--checkpoint", checkpoint, *fixed, *words])


def fails(*words: str, checkpoint="work/best") -> str:
    with pytest.raises(SystemExit) as ended:
        predict(*words, checkpoint=checkpoint)
    return str(ended.value.code)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "job.json"}


def records(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def mask_of(record: dict) -> np.ndarray:
    return decode_mask(record["segmentation"]).astype(bool)


def test_every_text_on_every_image_with_all_files(folder, predictor, capsys):
    texts = [word for text in TEXTS for word in ("--text", text)]
    predict("--image", "work/photos", *texts, "--output", "out", "--save", "overlay", "mask", "probability")
    printed = re.sub("Precision: fp32 .*\n", "", capsys.readouterr().out)
    assert printed.startswith("work/photos: 6 images\nwrote 12 predictions to out/predictions.jsonl (")
    found = records(folder / "out/predictions.jsonl")
    assert [(record["image"], record["text"]) for record in found] == [
        (f"work/photos/{i}.png", text) for i in range(6) for text in TEXTS
    ]
    assert len({json.dumps(record["segmentation"]) for record in found}) > 6  # not all alike
    for record in found:
        expected = predictor(record["image"], record["text"], return_probabilities=True)
        assert (mask_of(record) == expected.mask).mean() > 0.99
        assert record["score"] == pytest.approx(expected.score, abs=1e-4)
        overlay, mask, probability = (Image.open(folder / "out" / record["files"][kind]) for kind in record["files"])
        assert (overlay.format, overlay.size) == ("JPEG", expected.mask.shape[::-1])
        assert ((np.asarray(mask) == 255) == mask_of(record)).all()
        values = np.asarray(probability) / 65535
        assert np.abs(values - expected.probabilities).max() < 1e-3
    assert len({path for record in found for path in record["files"].values()}) == 36


def test_failed_rows_are_listed_and_can_be_predicted_later(folder, work, complete, capsys):
    message = fails("--pairs", "work/pairs.csv", "--output", "x.jsonl")
    assert "3 of 19 rows could not be predicted, the others were written" in message
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].startswith("3 of 19 rows failed")
    assert printed[3].startswith("  row 5: work/photos/none.png: expected an image, found no such file")
    assert printed[4].startswith("  row 8: work/pairs.csv, line 9: text: expected a sentence")
    assert printed[5].startswith("  row 13: work/backbones: expected an image, got a folder")
    found = records(folder / "x.jsonl")
    assert [record["image"] for record in found[:5]] == [f"photos/{i}.png" for i in (0, 0, 1, 1, 2)]
    assert found[0] == found[-1]  # duplicate rows stay
    assert len(found) == 16
    assert complete["predictions.jsonl"] == (folder / "x.jsonl").read_bytes()
    errors = (folder / "x_errors.jsonl").read_text().replace("none.png", "3.png").replace("backbones", "photos/4.png")
    (folder / "fixed.jsonl").write_text(errors)
    fails("--pairs", "fixed.jsonl", "--image_root", "work", "--output", "later.jsonl")  # the blank sentence
    assert [record["image"] for record in records(folder / "later.jsonl")] == ["photos/3.png", "photos/4.png"]


def test_paths_on_the_standard_input_and_one_row_as_json_lines(folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"work/photos/3.png\n")))
    predict("--image", "-", "--text", "red", "--output", "x.jsonl")
    predict("--image", "work/photos/3.png", "--text", "red", "--output", "y.jsonl")
    assert (folder / "x.jsonl").read_bytes() == (folder / "y.jsonl").read_bytes() != b""


def test_a_closed_standard_input_is_an_empty_one(folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert "--image -: expected one path per line, got none" in fails("--image", "-", "--text", "red")
    assert "--pairs -: expected rows with image and text, found none" in fails("--pairs", "-")


def test_an_overlay_too_large_for_a_jpeg_is_a_png(folder):
    Image.new("RGB", (65_501, 1)).save(folder / "wide.png")
    predict("--image", "wide.png", "--text", "red", "--output", "out/", "--save", "overlay")
    (record,) = records(folder / "out/predictions.jsonl")
    assert Image.open(folder / "out" / record["files"]["overlay"]).format == "PNG"


def test_a_job_that_was_killed_continues_without_repeating_rows(folder, work, complete, monkeypatch):
    words = ["--pairs", "work/pairs.csv", "--output", "out", "--resume"]
    fails(*words)  # nothing to continue: starts
    size = len(b"".join(complete["predictions.jsonl"].splitlines(keepends=True)[:8])) + 40
    os.truncate(folder / "out/predictions.jsonl", size)
    calls = []
    real = DetrisPredictor.predict_batch

    def counted(self, pairs, *arguments):
        calls.append(len(pairs))
        return real(self, pairs, *arguments)

    monkeypatch.setattr(DetrisPredictor, "predict_batch", counted)
    assert "3 of 19 rows" in fails(*words)
    assert calls == [4, 3, 3]  # of the rows 9 to 19, of which one failed
    assert fix(contents(folder / "out")) == fix(complete)
    assert "threshold: expected 0.35, as in the interrupted job, got 0.5" in fails(*words, "--threshold", "0.5")
    with (folder / "two.csv").open("w") as file:
        file.write("image,text\nwork/photos/1.png,red\n")
    assert "number of rows: expected 19" in fails("--pairs", "two.csv", *words[2:])
    assert fix(contents(folder / "out")) == fix(complete)


def test_int8_weights_are_a_setting_of_the_job(folder, predictor):
    pytest.importorskip("torchao", reason="needs torchao")
    words = ["--image", "work/photos", "--text", TEXTS[0], "--output", "out"]
    predict(*words, "--quantize", "int8")
    for record in records(folder / "out/predictions.jsonl"):
        expected = predictor(record["image"], record["text"])
        assert record["score"] == pytest.approx(expected.score, abs=0.05)
    message = "quantize: expected 'int8', as in the interrupted job, got None"
    assert message in fails(*words, "--resume")


def fix(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files with the same folder in the messages."""
    errors = [{**json.loads(line), "error": ""} for line in files["errors.jsonl"].splitlines()]
    return {**files, "errors.jsonl": json.dumps(errors).encode()}


def test_existing_results_and_inputs_are_kept(folder):
    words = ("--image", "work/photos/*.png", "--text", "red", "--output")
    predict(*words, "out")
    before = contents(folder / "out")
    assert "add --overwrite, or --resume to continue it" in fails(*words, "out")
    Image.new("RGB", (9, 9)).save(folder / "out/mine.png")
    assert "than that of the input out/mine.png" in fails(
        "--image", "out/mine.png", "--text", "red", "--output", "out", "--overwrite"
    )
    assert contents(folder / "out") == {**before, "mine.png": (folder / "out/mine.png").read_bytes()}
    predict(*words, "out", "--overwrite", "--threshold", "0.9")
    assert contents(folder / "out")["predictions.jsonl"] != before["predictions.jsonl"]


def run_process(folder: Path, *command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )
    assert "could not be predicted" in done.stderr, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


JOB = ("--checkpoint", "work/best", "--pairs", "work/pairs.csv", "--batch_size", "4", "--device", "cpu")
JOB += ("--precision", "fp32")


@pytest.fixture
def single_process(folder):
    """The files of a single process with one thread."""
    run_process(folder, "-m", "detris_peft.cli", "predict", *JOB, "--output", "single")
    return contents(folder / "single")


@pytest.fixture
def launch():
    """The command that starts two ranks on the CPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    config = str(REPOSITORY / "examples/accelerate/cpu.yaml")
    return "-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", port


@pytest.mark.slow
def test_two_ranks_write_the_same_bytes_and_continue_what_one_started(folder, launch, single_process):
    printed = run_process(folder, *launch, str(REPOSITORY / "examples/predict.py"), *JOB, "--output", "two")
    assert printed.count("wrote 16 predictions") == 1
    assert contents(folder / "two") == single_process

    shutil.copytree(folder / "single", folder / "resumed")
    os.truncate(folder / "resumed/predictions.jsonl", len(single_process["predictions.jsonl"]) // 2)
    printed = run_process(folder, *launch, "-m", "detris_peft.cli", "predict", *JOB, "--output", "resumed", "--resume")
    assert "rows were done before; wrote 16 predictions" in printed
    assert contents(folder / "resumed") == single_process


@pytest.mark.slow
def test_an_error_on_one_rank_ends_the_others(folder, launch):
    (folder / "script.py").write_text(
        "import os\n"
        "from detris_peft.prediction.ranks import Ranks\n"
        "def fail():\n"
        "    if ranks.rank == 1:\n"
        "        raise OSError('rows could not be predicted')\n"
        "ranks = Ranks('cpu')\n"
        "assert ranks.on_main(lambda: ranks.rank + 5) == 5\n"
        "os.write(1, f'broadcast {ranks.world}\\n'.encode())\n"  # at once: two ranks write to the same stream
        "ranks.on_all(fail)\n"
        "print('not reached')\n"
    )
    printed = run_process(folder, *launch, "script.py")
    assert printed.count("broadcast 2") == 2
    assert "not reached" not in printed


RAY = """
import runpy, sys, ray
ray.init(num_cpus=2, object_store_memory=80_000_000, include_dashboard=False, _temp_dir=sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_two_ray_actors_write_the_same_bytes(folder, single_process, tmp_path_factory):
    pytest.importorskip("ray")
    temporary = Path("/tmp") / f"ray_{os.getpid()}"  # the paths of its sockets must be short
    try:
        example = str(REPOSITORY / "examples/predict_ray.py")
        run_process(folder, "-c", RAY, str(temporary), example, *JOB, "--output", "ray", "--num_actors", "2")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    assert contents(folder / "ray") == single_process
