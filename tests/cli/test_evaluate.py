"""`detris evaluate`: truncated sentences and its output file."""

from __future__ import annotations

import json

import pytest

from detris_peft import DetrisProcessor
from detris_peft.cli import main
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
