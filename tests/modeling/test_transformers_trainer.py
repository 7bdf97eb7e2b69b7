"""Training with the `Trainer` of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPTextModelWithProjection, Dinov2WithRegistersModel, Trainer, TrainingArguments

from detris_peft import DetrisForReferringSegmentation
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
