"""`detris train` with backbones of other types than the preset's, end to end."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file
from transformers import BertTokenizerFast

from detris_peft import DetrisForReferringSegmentation, DetrisProcessor
from detris_peft.cli import main
from detris_peft.data.refshapes import write_refshapes
from tests.helpers.tiny_models import image_encoder, text_encoder


@pytest.mark.slow
def test_dinov2_and_bert_train_over_their_own_weights(tmp_path):
    write_refshapes(tmp_path / "data", train=4, val=2, test=1, image_size=48)
    image_encoder("dinov2").save_pretrained(tmp_path / "dino")
    text_encoder("bert").save_pretrained(tmp_path / "bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "circle", "square", "left", "of"]
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path / "bert")
    (tmp_path / "options.yaml").write_text("vision_adapter: {dim: 16}\nhidden_dim: 64\nimage_size: 48\n")
    main(
        f"train --preset tiny --config {tmp_path}/options.yaml --data_root {tmp_path}/data --dataset refshapes "
        f"--vision_model {tmp_path}/dino --text_model {tmp_path}/bert --output_dir {tmp_path}/run --epochs 1 "
        "--batch_size 2".split()
    )
    model = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run/best")
    assert (model.config.vision_config.model_type, model.config.text_config.model_type) == ("dinov2", "bert")
    assert (model.config.vision_adapter.dim, model.config.text_adapter.dim, model.config.image_size) == (16, 32, 48)
    weights = load_file(tmp_path / "bert/model.safetensors")
    embeddings = model.text_model.get_base_model().embeddings.word_embeddings.weight
    assert embeddings.equal(weights["embeddings.word_embeddings.weight"])
    assert type(DetrisProcessor.from_pretrained(tmp_path / "run/best").tokenizer).__name__.startswith("Bert")
