"""The tables and the code for an own adapter type in docs/adapters.md are true, as written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from detris_peft import DetrisForReferringSegmentation
from detris_peft.modeling import DetrisConfig
from detris_peft.modeling.backbone_adapters import adapt_backbone
from detris_peft.modeling.encoders import build_backbone
from tests.helpers.hub_server import run_hub_server
from tests.helpers.tiny_models import image_encoder, inputs, text_encoder, tiny_config

TEXT = (Path(__file__).parents[2] / "docs/adapters.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^\| `(\{peft_type: .*?\})` \|.*\| ([\d,]+) \|$", TEXT, re.MULTILINE)
NEW_PROCESS = """
import torch
from detris_peft import DetrisForReferringSegmentation

try:
    DetrisForReferringSegmentation.from_pretrained("saved")
except ValueError as error:
    assert "peft_type: expected a type registered with peft" in str(error)
    assert "'WIDE_ALIGNER'; import the module that registers it" in str(error)
else:
    raise AssertionError("the type is not registered yet")

import wide_aligner

batch, expected = torch.load("expected.pt")
model = DetrisForReferringSegmentation.from_pretrained("saved")
model.push_to_hub("user/wide")
for model in (model, DetrisForReferringSegmentation.from_pretrained("user/wide")):
    assert type(model.config.vision_adapter) is wide_aligner.WideAlignerConfig
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, expected)
model.save_pretrained("again")
"""


@pytest.mark.parametrize(("fields", "count"), EXAMPLES)
def test_the_parameters_of_the_examples_are_exact(fields, count):
    config = DetrisConfig(vision_adapter=yaml.safe_load(fields))
    with torch.device("meta"):
        model = adapt_backbone(build_backbone(config.vision_config), config.vision_adapter)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == int(count.replace(",", ""))


def test_the_table_of_presets_has_the_tested_counts():
    from tests.modeling.test_parameter_counts import ROWS

    rows = re.findall(r"^\| ((?:`[\w-]+`(?:, )?)+) \| .* \| ([\d,]+) \| (?:[\d.]+ M|-) \|$", TEXT, re.MULTILINE)
    counts = {name: int(count.replace(",", "")) for names, count in rows for name in re.findall(r"[\w-]+", names)}
    assert counts == {name: sum(parts) for name, parts in ROWS.items()}


def test_an_own_type_trains_is_pushed_and_loads_bit_equal_in_a_new_process(tmp_path, monkeypatch):
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "register(" in block]
    assert len(code.splitlines()) < 60
    (tmp_path / "wide_aligner.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import wide_aligner  # type: ignore[import-not-found]

    sizes = {"dim": 16, "text_dim": 48, "layers_to_transform": [0, 2], "cross_attention_dim": 16}
    adapter = wide_aligner.WideAlignerConfig(**sizes, wide_dim=4)
    for kind, encoder in (("vision", image_encoder()), ("text", text_encoder())):
        encoder.save_pretrained(tmp_path / kind)
    vision = type(image_encoder()).from_pretrained(tmp_path / "vision")
    text = type(text_encoder()).from_pretrained(tmp_path / "text")
    model = DetrisForReferringSegmentation.from_backbones(vision, text, tiny_config(vision_adapter=adapter))

    # The additional branch: two convolutions with biases, and two BatchNorms.
    plain = DetrisForReferringSegmentation(tiny_config(vision_adapter={**sizes, "peft_type": "DENSE_ALIGNER"}))
    own, others = (sum(p.numel() for p in m.vision_model.parameters() if p.requires_grad) for m in (model, plain))
    assert own - others == 2 * (16 * 4 + 4 + 2 * 4 + 4 * 16 * 7 * 7 + 16 + 2 * 16)

    batch = inputs()
    weights = [p for name, p in model.named_parameters() if "branch7" in name]
    before = [p.detach().clone() for p in weights]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(**batch).loss.backward()
    optimizer.step()
    assert not any(torch.equal(p, old) for p, old in zip(weights, before, strict=True))
    model.eval()
    model.config.vision_name_or_path, model.config.text_name_or_path = "user/vision", "user/text"
    with torch.no_grad():
        torch.save((batch, model(**batch).logits), tmp_path / "expected.pt")
    model.save_pretrained(tmp_path / "saved")
    with run_hub_server() as hub:
        for kind in ("vision", "text"):
            hub.add_folder(f"user/{kind}", tmp_path / kind)
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": "hf_writer",
            "HF_HUB_DISABLE_XET": "1",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "PYTHONPATH": str(tmp_path),
        }
        command = [sys.executable, "-c", NEW_PROCESS]
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    for name in ("head.safetensors", "vision_adapter/adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()
