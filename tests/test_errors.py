"""Errors for arguments of a wrong type name the argument."""

from __future__ import annotations

import pytest

from detris_peft import DetrisConfig, DetrisForReferringSegmentation, DetrisProcessor
from detris_peft.data import EvaluationSamples, TrainingSamples, load_coco, load_folder, load_refer


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (DetrisForReferringSegmentation.from_pretrained, "pretrained_model_name_or_path"),
        (DetrisProcessor.from_pretrained, "pretrained_model_name_or_path"),
        (lambda value: load_refer(value, "refcoco", "unc", "val"), "root"),
        (load_folder, "folder"),
        (load_coco, "file"),
        (TrainingSamples, "rows"),
        (EvaluationSamples, "rows"),
    ],
)
@pytest.mark.parametrize("value", [None, 3])
def test_arguments_of_a_wrong_type_are_named(call, argument, value):
    with pytest.raises(TypeError, match=rf"^{argument}: expected .*, got {type(value).__name__}; "):
        call(value)


def test_arguments_of_save_pretrained_are_named(model, tmp_path):
    with pytest.raises(TypeError, match=r"^save_directory: expected a path .*, got NoneType; "):
        model.save_pretrained(None)
    with pytest.raises(TypeError, match=r"^state_dict: expected weights by name, got int; "):
        model.save_pretrained(tmp_path / "checkpoint", state_dict=3)
    assert not (tmp_path / "checkpoint").exists()


def test_an_unknown_dtype_in_a_config_is_named():
    with pytest.raises(ValueError, match=r"^dtype='floaty': expected the name of a torch dtype"):
        DetrisConfig(dtype="floaty")
