"""`detris params`: the parameters of a preset, of a checkpoint, and of changed configurations."""

from __future__ import annotations

import csv
import io
import json

import pytest

from detris_peft import presets
from detris_peft.cli.params import main
from tests.helpers.tiny_models import image_encoder, text_encoder

SHOWN = ("table2-lora", "table3-none", "tiny")


@pytest.fixture
def params(capsys):
    """A function that runs the command, and returns what it prints."""

    def run(*arguments: str) -> str:
        main([*arguments])
        return capsys.readouterr().out

    return run


def test_a_preset_is_printed_next_to_the_figure_of_the_paper(params):
    printed = params("table2-etris")
    lines = [line for line in printed.splitlines() if line and not line.startswith("paper:")]
    values = {line[:28].strip(): line[28:].strip() for line in lines}
    assert values["Bridger"] == values["backbone update"] == "1,387,648"
    assert (values["neck"], values["decoder"], values["projector"]) == ("10,114,560", "7,899,136", "4,788,737")
    assert (values["head"], values["trained"], values["frozen"]) == ("22,802,433", "24,190,081", "150,011,648")
    assert values["difference"] == "+7,648"
    assert values["backbone update in the paper"] == "1.38 M"
    assert "Table 2" in printed


@pytest.mark.parametrize("output", ["text", "markdown", "csv", "json"])
def test_the_table_of_all_presets(params, monkeypatch, output):
    monkeypatch.setattr(presets, "list_presets", lambda: SHOWN)  # building all of them takes seconds
    printed = params("--all", "--format", output)
    if output == "json":
        rows = json.loads(printed)
    elif output == "csv":
        rows = [*csv.DictReader(io.StringIO(printed))]
    else:
        assert "not measured by us" in printed
        header, *lines = [line for line in printed.splitlines() if line and not line.startswith("paper:")]
        assert len({len(line) for line in (header, *lines)}) == 1  # aligned
        split = (lambda line: [cell.strip() for cell in line.strip("|").split("|")]) if output == "markdown" else None
        lines = [line for line in lines if not line.startswith("|-")]
        if split is None:
            assert [line.split()[0] for line in lines] == [*SHOWN]
            assert lines[0].split()[5:9] == ["1,572,864", "1.57", "M", "+2,864"]
            return
        names = split(header)
        rows = [dict(zip(names, split(line), strict=True)) for line in lines]
        assert rows[0]["backbone update"] == "1,572,864"
        assert [row["paper"] for row in rows] == ["1.57 M", "-", "-"]
        assert [row["paper's mIoU"] for row in rows] == ["73.1", "74.6", "-"]
        return
    assert [row["name"] for row in rows] == [*SHOWN]
    assert [int(row["backbone_update"]) for row in rows] == [1_572_864, 0, 38_256]
    assert float(rows[0]["paper"]) == 1.57
    assert not rows[1]["paper"]
    assert int(rows[0]["neck"]) == 10_114_560


def test_options_change_the_configuration_and_remove_the_figure_of_the_paper(params):
    adapter = "{peft_type: LORA, r: 2, target_modules: [q_proj]}"
    values = json.loads(params("tiny", "--vision_adapter", adapter, "--text_adapter", "none", "--format", "json"))
    assert (values["vision_adapter"], values["text_adapter"]) == (4 * 2 * (64 + 64), 0)
    printed = params("table2-fixed", "--decoder_layers", "1")
    assert "in the paper" not in printed


def test_other_encoders_by_their_folder(params, tmp_path):
    image_encoder("vit").save_pretrained(tmp_path / "vit")
    text_encoder("bert").save_pretrained(tmp_path / "bert")
    values = json.loads(
        params(
            *("table2-lora", "--vision_model", str(tmp_path / "vit"), "--text_name_or_path", str(tmp_path / "bert")),
            *("--decoder_heads", "4", "--format", "json"),
        )
    )
    assert values["vision_adapter"] == 3 * 2 * 32 * (32 + 32)
    assert values["text_adapter"] == 3 * 2 * 16 * (48 + 48)
    frozen = sum(p.numel() for model in (image_encoder("vit"), text_encoder("bert")) for p in model.parameters())
    assert values["frozen"] == frozen


def test_a_checkpoint(params, tmp_path):
    from tests.helpers.toy_run import load_model, write_toys

    write_toys(tmp_path)
    model = load_model(tmp_path)
    model.save_pretrained(tmp_path / "run")
    values = json.loads(params(str(tmp_path / "run"), "--format", "json"))
    assert values["trained"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
