"""Tables, plots and the text of a report, from results that nobody trained."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest
from PIL import Image

from detris_peft.comparison.report import OUTPUT_FILES, Report
from detris_peft.comparison.table import escape_latex, format_parameters, summarize, to_csv, to_latex, to_markdown
from tests.comparison.made_results import make_counts, make_experiment, make_result, random_counts


@pytest.fixture
def experiment():
    return make_experiment("base", "other_arm", "untrained")


@pytest.fixture
def results():
    """Reference: mIoU 0.35 and 0.65, oIoU 0.3 and 0.7; the other arm: one seed, mIoU 0.7, oIoU 0.6."""
    pairs = {("base", 0): [(5, 10), (4, 20)], ("base", 1): [(5, 10), (16, 20)], ("other_arm", 0): [(10, 10), (8, 20)]}
    made = {key: make_result(*key, make_counts(pair)) for key, pair in pairs.items()}
    return {arm: {seed: run for (name, seed), run in made.items() if name == arm} for arm in ("base", "other_arm")}


def test_the_csv_has_the_numbers_of_a_hand_computation(experiment, results):
    rows = [*csv.DictReader(to_csv(summarize(experiment, results), ["val"]).splitlines())]
    assert [row["arm"] for row in rows] == ["base", "other_arm", "untrained"]
    base, other, untrained = rows
    assert (base["reference"], base["seeds"], base["trained_parameters"]) == ("1", "2", "1250")
    assert base["backbone_update_parameters"] == "250"
    assert float(base["val_mIoU_mean"]) == pytest.approx(0.5, abs=1e-6)
    assert float(base["val_mIoU_sd"]) == pytest.approx(0.3 / 2**0.5, abs=1e-6)
    assert float(base["val_oIoU_mean"]) == pytest.approx((0.3 + 0.7) / 2)
    assert base["val_mIoU_difference"] == ""
    assert float(other["val_mIoU_mean"]) == pytest.approx(0.7, abs=1e-6)
    assert (other["val_mIoU_sd"], other["val_mIoU_pairs"]) == ("", "1")
    assert float(other["val_mIoU_difference"]) == pytest.approx(0.35, abs=1e-6)
    assert float(other["val_mIoU_low"]) == pytest.approx(0.2, abs=1e-6)  # both draws are the second image
    assert float(other["val_mIoU_high"]) == pytest.approx(0.5, abs=1e-6)
    assert float(other["val_oIoU_difference"]) == pytest.approx(0.3)
    assert {value for name, value in untrained.items() if name.startswith(("val", "trained"))} == {""}


def test_the_markdown_table_has_one_row_per_arm(experiment, results):
    lines = to_markdown(summarize(experiment, results), ["val"]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in cells}) == 1
    assert cells[2] == ["base (reference)", "1,250", "250", "2", "50.0 ± 21.2", "50.0 ± 28.3", "-", "-"]
    assert cells[3][:6] == ["other_arm", "1,250", "250", "1", "70.0", "60.0"]
    assert cells[3][6] == "+35.0 [+20.0, +50.0]"
    assert cells[4] == ["untrained", "-", "-", "0", "-", "-", "-", "-"]


def test_the_latex_table_is_balanced_and_escaped(experiment, results):
    text = to_latex(summarize(experiment, results), ["val"])
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) == 4
    columns = re.search(r"\\begin\{tabular\}\{(l r*|lr*)\}", text)
    assert columns
    for line in body:
        assert len(re.findall(r"(?<!\\)&", line)) == len(columns[1]) - 1
        assert len(re.findall(r"(?<!\\)\$", line)) % 2 == 0
        assert not re.search(r"(?<!\\)[_#%]", line)
    assert r"other\_arm" in text
    assert "base" in text
    assert text.count(r"\begin") == text.count(r"\end") == 1
    assert escape_latex("50% of a_b & {c}^2 ~ $5 #1 \\") == (
        r"50\% of a\_b \& \{c\}\textasciicircum{}2 \textasciitilde{} \$5 \#1 \textbackslash{}"
    )


def test_numbers_of_parameters_as_in_the_paper():
    assert [format_parameters(n) for n in (0, 38_256, 2_715_696)] == ["0", "38,256", "2.72 M"]


def test_a_report_with_many_arms_says_what_is_missing(tmp_path):
    arms = [f"arm-with-a-long-name-{i}" for i in range(12)]
    experiment = make_experiment(*arms, splits=["val"])
    rng = np.random.default_rng(0)
    for arm in arms[:-1]:
        make_result(arm, 0, random_counts(rng, 20, 0.5)).write(tmp_path)

    def load_rows(split):
        raise OSError("no data")

    notices = Report(tmp_path, experiment, load_rows).write()
    assert notices[0].startswith(f"Not finished yet: {arms[0]} (seed 1); ")
    assert notices[0].endswith(f"{arms[-1]} (all seeds).")
    assert notices[1] == (
        "Words are not compared, and figure2.png and errors.png are not drawn again, without the dataset that was "
        "scored (no data)."
    )
    written = {path.name for path in tmp_path.iterdir()} - {"results"}
    assert written == {*OUTPUT_FILES} - {"figure2.png", "errors.png"}
    for name in ("bars.png", "curves.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 700
    text = (tmp_path / "report.md").read_text()
    assert notices[0] in text
    assert "20 sentences of 10 images" in text
    assert "figure2.png)" not in text
    assert "errors.png)" not in text
    assert "## Errors" in text
    assert "that contain a word" not in text


def test_a_report_without_results_has_a_table(tmp_path):
    notices = Report(tmp_path, make_experiment("a"), lambda split: pytest.fail("no masks")).write()
    assert notices == ["Not finished yet: a (all seeds)."]
    assert "| a (reference) | - |" in (tmp_path / "table.md").read_text()
    assert not (tmp_path / "bars.png").exists()
