"""The second input belongs to a call: threads that share one adapted encoder do not mix up their sentences."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from peft import get_peft_model
from torch import nn

from detris_peft import DenseAlignerConfig, DetrisForReferringSegmentation, TextAdapterConfig
from tests.helpers.tiny_models import image_encoder, inputs, perturb, text_encoder, tiny_config

THREADS = 8


def adapted_image_encoder():
    model = get_peft_model(image_encoder(), DenseAlignerConfig(dim=16, layers_to_transform=[0, 1, 2], text_dim=48))
    samples = [(torch.randn(1, 3, 32, 32), torch.randn(1, 3 + i, 48)) for i in range(THREADS)]
    return model, [lambda pixels=p, states=s: model(pixels, text_states=states).last_hidden_state for p, s in samples]


def adapted_text_encoder():
    model = get_peft_model(text_encoder(), TextAdapterConfig(dim=16, layers_to_transform=[0, 1, 2]))
    samples = [torch.randint(1, 50, (1, 3 + i)) for i in range(THREADS)]
    return model, [lambda ids=ids: model(input_ids=ids).last_hidden_state for ids in samples]


def complete_model():
    model = DetrisForReferringSegmentation.from_backbones(image_encoder(), text_encoder(), tiny_config())
    samples = []
    for _ in range(THREADS):
        batch = inputs()
        batch.pop("labels", None)
        batch["input_ids"] = batch["input_ids"].clone()
        batch["input_ids"][:, 1:3] = torch.randint(1, 50, (len(batch["input_ids"]), 2))
        samples.append(batch)
    return model, [lambda batch=batch: model(**batch).logits for batch in samples]


def count_wrong(calls: list, total: int) -> int:
    """Run `total` calls from as many threads as there are calls; count wrong results and errors."""
    with torch.no_grad():
        expected = [call() for call in calls]
    wrong = [0] * len(calls)
    start = threading.Barrier(len(calls))

    def work(index: int) -> None:
        start.wait()
        for _ in range(total // len(calls)):
            try:
                with torch.no_grad():  # a setting of the thread
                    got = calls[index]()
                wrong[index] += not torch.allclose(got, expected[index], atol=1e-5)
            except Exception:
                wrong[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(wrong)


@pytest.fixture(params=[adapted_image_encoder, adapted_text_encoder, complete_model], ids=lambda make: make.__name__)
def calls(request):
    model, calls = request.param()
    perturb(model)
    model.eval()
    with torch.no_grad():
        first, second = calls[0](), calls[1]()
    assert first.shape != second.shape or not torch.allclose(first, second)  # the sentences matter
    return calls


def test_threads_do_not_mix_up_their_inputs(calls):
    assert count_wrong(calls, 504) == 0


@pytest.mark.slow
def test_threads_do_not_mix_up_their_inputs_in_many_calls(calls):
    assert count_wrong(calls, 10_000) == 0


def test_mixed_batches_in_threads():
    """`adapter_names` belongs to a call, too."""
    config = DenseAlignerConfig(dim=16, layers_to_transform=[1], text_dim=48)
    model = get_peft_model(image_encoder(), config)
    model.add_adapter("other", config)
    perturb(model)
    model.eval()
    pixels, states = torch.randn(2, 3, 32, 32), torch.randn(2, 4, 48)
    names = [["default", "other"], ["other", "default"], ["__base__", "other"], None]
    calls = [
        lambda choice=choice: (
            model(pixels, text_states=states, **({"adapter_names": choice} if choice else {})).last_hidden_state
        )
        for choice in names
    ]
    assert count_wrong(calls, 200) == 0


@pytest.fixture
def encoder_call():
    """An adapted image encoder, its inputs (1, 3, 32, 32) and (1, 5, 48), and its output for them."""
    model, _ = adapted_image_encoder()
    perturb(model)
    model.eval()
    pixels, states = torch.randn(1, 3, 32, 32), torch.randn(1, 5, 48)
    with torch.no_grad():
        return model, pixels, states, model(pixels, text_states=states).last_hidden_state


def test_data_parallel_replicas_pass_the_second_input(encoder_call):
    """Replicas are shallow copies called from threads: hook and layer of a replica use the same call state."""
    model, pixels, states, expected = encoder_call

    def replicate(module: nn.Module) -> nn.Module:
        replica = module._replicate_for_data_parallel()
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else replicate(child)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                replica._parameters[name] = parameter.detach().clone()
        return replica

    replicas = [replicate(model) for _ in range(2)]
    results = [lambda replica=replica: replica(pixels, text_states=states).last_hidden_state for replica in replicas]
    assert count_wrong(results, 20) == 0
    with torch.no_grad():
        torch.testing.assert_close(results[0](), expected)


def test_copies_and_pickles_start_without_a_call_state(encoder_call):
    model, pixels, states, expected = encoder_call
    with torch.no_grad():
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(other(pixels, text_states=states).last_hidden_state, expected)
            layers = [m for m in other.modules() if hasattr(m, "call_state")]
            assert len(layers) == 3
            assert {id(layer.call_state) for layer in layers}.isdisjoint(
                id(m.call_state) for m in model.modules() if hasattr(m, "call_state")
            )
