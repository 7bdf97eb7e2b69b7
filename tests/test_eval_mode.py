"""A model is in eval mode within the context only."""

import torch

from detris_peft.eval_mode import eval_mode


def test_every_module_returns_to_the_mode_that_it_had():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]


def test_blocks_that_overlap_as_in_threads_keep_eval_mode_until_the_last_one():
    model = torch.nn.Dropout()
    first, second = eval_mode(model), eval_mode(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not model.training
    second.__exit__(None, None, None)
    assert model.training
