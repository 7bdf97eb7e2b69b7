"""The code for `transformers.Trainer` in docs/training.md runs as written."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from detris_peft import DetrisForReferringSegmentation

DOCUMENT = Path(__file__).parents[2] / "docs/training.md"


def test_code_in_the_documentation_trains(model, processor, root, tmp_path, monkeypatch):
    code = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    code = code.replace('"DATA", "refcoco"', f'"{root}", "refshapes"')
    code = code.replace("remove_unused", 'max_steps=2, use_cpu=True, report_to=[], save_strategy="no", remove_unused')
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    scope = {"model": model, "processor": processor}
    exec(code, scope)
    assert scope["trainer"].state.global_step == 2
    assert torch.isfinite(torch.tensor(scope["trainer"].state.log_history[-1]["train_loss"]))
    after = dict(model.named_parameters())
    unchanged = [name for name, value in before.items() if torch.equal(after[name], value)]
    # BatchNorm subtracts the bias of the convolution before it, whose gradient is zero or a rounding error.
    assert not [name for name in unchanged if not re.search(r"\.dmoc\..*\.0\.bias$", name)]
    loaded = DetrisForReferringSegmentation.from_pretrained("runs/b/model")
    assert torch.equal(loaded.neck.sentence_proj.weight, model.neck.sentence_proj.weight)
