"""Prediction for one image and one sentence: an overlay and a mask."""

from __future__ import annotations

from pathlib import Path

from ...precision import precision_dtype
from ...prediction import DetrisPredictor, load_image, usable_device
from ...prediction.single_output import write_prediction
from ...processing_detris import DetrisProcessor
from ...tokenization_detris import count_tokens
from ..checkpoint_options import CheckpointArguments, load_checkpoint
from .options import PredictionArguments


def predict_one(checkpoint: CheckpointArguments, arguments: PredictionArguments) -> None:
    """Predict the only image and sentence of the arguments, and write the overlay and the mask.

    Raises:
        OSError, ValueError: the image or the checkpoint cannot be read, or a file cannot be written.
    """
    device = usable_device(arguments.device, "--device")
    precision, described = arguments.precision_on(device)
    arguments.check_device(device)
    text = arguments.text[0]
    image = load_image(arguments.image[0])
    model, processor = load_checkpoint(checkpoint)
    predictor = DetrisPredictor(model, processor, device, precision_dtype(precision))
    arguments.optimize(predictor)
    print(described)
    if notice := _truncation(processor, text):
        print(notice)
    prediction = predictor(image, text, arguments.threshold)
    output, mask_file = Path(str(arguments.output)), arguments.mask_file
    write_prediction(output, prediction.overlay(image), mask_file, prediction.mask_image())
    print(f"{100 * prediction.mask.mean():.1f}% of the image is foreground; wrote {output} and {mask_file}")


def _truncation(processor: DetrisProcessor, text: str) -> str | None:
    """Return one line that shows what the model reads of a sentence that is too long, or None if it reads all."""
    tokenizer, limit = processor.tokenizer, processor.max_text_length  # type: ignore[attr-defined]
    count = count_tokens(tokenizer, [text])[0]
    if count <= limit:
        return None
    read = tokenizer.decode(processor(text=[text])["input_ids"][0], skip_special_tokens=True)
    return f"--text has {count} tokens, of which the model reads {limit}: {read!r}; shorten it to be read completely."
