"""`detris evaluate`: truncated sentences and its output file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from detris_peft import DetrisPredictor, DetrisProcessor
from detris_peft.cli import main
from detris_peft.data import DataSource, decode_row
from detris_peft.metrics import ReferringSegmentationMetrics
from tests.helpers import toy_run


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """A tiny checkpoint with its processor, which reads 5 tokens, and a dataset."""
    root = toy_run.write_toys(tmp_path_factory.mktemp("evaluate"))
    model = toy_run.load_model(root)
    model.config.max_text_length = 5
    toy_run.save_checkpoint(root, model)
    assert DetrisProcessor.from_pretrained(root / "best").max_text_length == 5
    common = ["evaluate", "--checkpoint", str(root / "best"), "--data_root", str(root), "--dataset", "refshapes"]
    return [*common, "--num_workers", "0"]


def test_the_masks_are_those_of_predict_in_each_precision(arguments, tmp_path, capsys):
    """And the precision is printed, and written with the scores."""
    checkpoint = arguments[arguments.index("--checkpoint") + 1]
    rows = DataSource(dataset="refshapes", data_root=str(Path(checkpoint).parent)).load("val")
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        predictor = DetrisPredictor.from_pretrained(checkpoint, device="cpu", dtype=dtype)
        metrics = ReferringSegmentationMetrics()
        for row in rows:
            image, mask = decode_row(row)
            metrics.add(prediction=predictor(image, row["sentences"][0]).mask, reference=mask)
        main([*arguments, "--precision", precision, "--output", str(tmp_path / f"{precision}.json")])
        scores = json.loads((tmp_path / f"{precision}.json").read_text())
        assert scores["precision"] == precision
        expected = metrics.compute()
        assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-3)
        assert f"Precision: {precision} (on a CPU without bf16 instructions)" in capsys.readouterr().out


def test_truncated_sentences_are_counted_and_an_existing_output_is_kept(arguments, tmp_path, capsys):
    output = tmp_path / "new" / "scores.json"
    main([*arguments, "--output", str(output)])
    printed = capsys.readouterr().out
    assert "of 8 expressions have more than 5 tokens and are truncated" in printed
    assert f"wrote {output}" in printed
    assert json.loads(output.read_text())["samples"] == 8
    output.write_text("old")
    with pytest.raises(SystemExit, match="add --overwrite"):
        main([*arguments, "--output", str(output)])
    assert output.read_text() == "old"
    main([*arguments, "--output", str(output), "--overwrite"])
    assert json.loads(output.read_text())["samples"] == 8


def test_no_target_pairs_are_scored_with_n_acc_and_the_other_scores_do_not_change(arguments, tmp_path, capsys):
    scores = []
    for name, options in (("plain", []), ("pairs", ["--no_target_pairs"])):
        main([*arguments, *options, "--output", str(tmp_path / f"{name}.json")])
        scores.append(json.loads((tmp_path / f"{name}.json").read_text()))
    assert "refshapes val (8 samples, 8 no-target pairs): mIoU" in capsys.readouterr().out
    plain, pairs = scores
    assert (plain["no_target_pairs"], pairs["no_target_pairs"]) == (0, 8)
    added = {name: pairs.pop(name) for name in ("N-acc", "T-acc")}
    assert all(0 <= value <= 1 for value in added.values())
    assert pairs == {**plain, "no_target_pairs": 8}
