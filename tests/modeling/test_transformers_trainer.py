"""Training with the `Trainer` of transformers."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection, Dinov2WithRegistersModel, Trainer, TrainingArguments

from detris_peft import DetrisForReferringSegmentation
from detris_peft.modeling.checkpoint import trainable_state_dict
from tests.helpers.tiny_models import image_encoder, inputs, text_encoder, tiny_config


class Rows(torch.utils.data.Dataset):
    def __init__(self):
        self.columns = inputs(batch=4)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        # The Trainer removes columns that are not arguments of the model.
        return {**{k: v[index] for k, v in self.columns.items()}, "sentence": "the red mug"}


@pytest.fixture
def make(tmp_path):
    image_encoder().save_pretrained(tmp_path / "vision")
    text_encoder().save_pretrained(tmp_path / "text")

    def make(**changes) -> DetrisForReferringSegmentation:
        torch.manual_seed(0)
        return DetrisForReferringSegmentation.from_backbones(
            Dinov2WithRegistersModel.from_pretrained(tmp_path / "vision"),
            CLIPTextModelWithProjection.from_pretrained(tmp_path / "text"),
            tiny_config(**changes),
        )

    return make


def arguments(folder, **changes) -> TrainingArguments:
    fields = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "save_steps": 2,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(**{**fields, **changes})


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_trains_evaluates_and_saves_adapters_only(make, tmp_path, checkpointing):
    model = make()
    trainer = Trainer(
        model=model,
        args=arguments(tmp_path / "run", gradient_checkpointing=checkpointing),
        train_dataset=Rows(),
        eval_dataset=Rows(),
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.evaluate()["eval_loss"] > 0
    folder = tmp_path / "run" / "checkpoint-2"
    assert (folder / "head.safetensors").is_file()
    assert not (folder / "model.safetensors").exists()
    loaded = DetrisForReferringSegmentation.from_pretrained(folder)
    batch = inputs()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model.eval()(**batch).logits)


def test_loss_is_divided_by_the_accumulation_steps(make, tmp_path):
    """The loss is a mean, so the Trainer must divide it; it then logs the mean over all samples."""

    def first_loss(**changes):
        trainer = Trainer(
            model=make(dropout=0.0),
            args=arguments(tmp_path / "run", max_steps=1, save_strategy="no", **changes),
            train_dataset=Rows(),
        )
        trainer.train()
        return trainer.state.log_history[0]["loss"]

    one_batch = first_loss(per_device_train_batch_size=4)
    accumulated = first_loss(per_device_train_batch_size=2, gradient_accumulation_steps=2)
    # Not equal, because BatchNorm gets other batches. Without the division it would be twice as large.
    assert accumulated == pytest.approx(one_batch, rel=0.3)


def train(make, folder, resume=None, best=False, **changes) -> tuple[Trainer, DetrisForReferringSegmentation]:
    """Train 4 steps of 2 images with an evaluation and a checkpoint after each; return the trainer and its model."""
    model = make()
    fields = {"max_steps": 4, "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, **changes}
    trainer = Trainer(
        model=model,
        args=arguments(folder, load_best_model_at_end=best, **fields),
        train_dataset=Rows(),
        eval_dataset=Rows(),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, model


def trained(model) -> dict[str, torch.Tensor]:
    """Return copies of the trained weights and of the running statistics."""
    return {key: value.clone() for key, value in trainable_state_dict(model).items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [key for key in a if not torch.equal(a[key], b[key])]


@pytest.mark.parametrize("path", [True, pytest.param("checkpoint-2", marks=pytest.mark.slow)])
def test_a_resumed_run_equals_an_uninterrupted_one(make, tmp_path, path):
    fields = {"save_steps": 2, "eval_strategy": "no"}
    _, complete = train(make, tmp_path / "complete", **fields)
    shutil.copytree(tmp_path / "complete", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoint-4")
    resume = path if path is True else str(tmp_path / "resumed" / path)
    trainer, resumed = train(make, tmp_path / "resumed", resume, **fields)
    assert trainer.state.global_step == 4
    assert_equal(trained(resumed), trained(complete))
    saved = DetrisForReferringSegmentation.from_pretrained(tmp_path / "complete/checkpoint-2")
    assert any(not torch.equal(a, b) for a, b in zip(trained(saved).values(), trained(resumed).values(), strict=True))


def test_the_best_weights_are_loaded_at_the_end(make, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    # The loss falls, so the highest one is not the last.
    trainer, model = train(make, tmp_path / "run", best=True, greater_is_better=True)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == f"checkpoint-{1 + losses.index(max(losses))}" != "checkpoint-4"
    assert_equal(trained(model), trained(DetrisForReferringSegmentation.from_pretrained(best)))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(max(losses), rel=1e-4)
    last = trained(DetrisForReferringSegmentation.from_pretrained(tmp_path / "run/checkpoint-4"))
    assert any(not torch.equal(a, b) for a, b in zip(last.values(), trained(model).values(), strict=True))
    assert "keys in the checkpoint model" not in caplog.text


def test_a_damaged_checkpoint_is_not_resumed(make, tmp_path):
    train(make, tmp_path / "run", max_steps=1)
    file = tmp_path / "run/checkpoint-1/vision_adapter/adapter_model.safetensors"
    weights = load_file(file)
    key = next(key for key in weights if "up.bias" in key)
    save_file({**weights, key: weights[key] * torch.nan}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"vision_adapter: the weights of .* expected finite values for .*up\.bias"):
        train(make, tmp_path / "run", True)
    save_file({k: v for k, v in weights.items() if k != key}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"expected the weights of one of the active adapters \(vision, text\), got"):
        train(make, tmp_path / "run", True)
