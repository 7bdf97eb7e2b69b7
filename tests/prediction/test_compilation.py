"""A compiled predictor: one shape for all batches, equal results, and a device without a compiler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from detris_peft.prediction import DetrisPredictor, compilation
from detris_peft.prediction import predictor as predictor_module

TEXTS = ["the red circle", "blue", "the small square on the left", "green triangle"]


@pytest.fixture
def images(photo):
    image = Image.open(photo)
    return [image, image.resize((33, 70))]


def probabilities(predictor, images):
    """Return the maps of one image with several sentences, which share a batch, and of another one."""
    results = [*predictor(images[0], TEXTS, return_probabilities=True)]
    return [result.probabilities for result in (*results, predictor(images[1], TEXTS[0], return_probabilities=True))]


@pytest.mark.parametrize("backend", [None, pytest.param("eager", marks=pytest.mark.slow)])
def test_batches_are_padded_to_one_shape_and_results_stay(checkpoint, predictor, images, monkeypatch, backend):
    compiled = DetrisPredictor.from_pretrained(checkpoint, device="cpu", batch_size=3)
    monkeypatch.setattr(predictor_module, "check_compiler", lambda device: None)
    shapes = []

    def record(module, args, kwargs):
        shapes.append(([tuple(value.shape) for value in args], kwargs["image_indices"]))

    compiled.model.register_forward_pre_hook(record, with_kwargs=True)
    compilations = []

    def compile_model() -> None:
        compilations.append(backend)
        if backend:
            torch.nn.Module.compile(compiled.model, backend=backend)

    monkeypatch.setattr(compiled.model, "compile", compile_model)
    compiled.compile()
    assert compilations == [backend]
    found = probabilities(compiled, images)
    assert len(shapes) == 3
    assert shapes[0][0][0][0] == 3
    assert all(shape == shapes[0] and shape[1] is None for shape in shapes)
    for one, other in zip(found, probabilities(predictor, images), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_device_without_a_compiler_is_refused_before_the_model_is_changed(checkpoint, monkeypatch):
    from torch._inductor import config

    predictor = DetrisPredictor.from_pretrained(checkpoint, device="cpu")
    monkeypatch.setattr(predictor.model, "compile", lambda: pytest.fail("compiled"))
    torch._dynamo.reset()
    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ValueError, match=r"compile: .* on cpu, got .*; install a C\+\+ compiler .*, or omit compile\."),
    ):
        predictor.compile()


def test_the_check_of_the_compiler_names_the_option(monkeypatch):
    def fails(function):
        raise RuntimeError("no compiler\nmore lines")

    monkeypatch.setattr(compilation.torch, "compile", fails)
    with pytest.raises(ValueError, match=r"^--compile: expected .* got no compiler; install Triton and a C compiler"):
        compilation.check_compiler(torch.device("cuda"), "--compile")
