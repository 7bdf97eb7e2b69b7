"""The notebooks in examples/notebooks run from top to bottom, and their commands are accepted."""

from __future__ import annotations

import ast
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest

from detris_peft.cli import main
from detris_peft.data.refshapes import write_refshapes

from .docs_commands.extraction import simple_commands
from .docs_commands.parsing import parse

FOLDER = Path(__file__).parents[1] / "examples/notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook) -> str:
    """Return what the cells printed and returned as text."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def shown_images(notebook) -> int:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def execute(name: str, folder: Path, monkeypatch, parameters: str = ""):
    """Run a notebook in a folder, with assignments after its cell of parameters, and return it with its outputs."""
    from nbclient import NotebookClient

    notebook = nbformat.read(FOLDER / name, as_version=4)
    cells = notebook.cells
    position = next(i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", ()))
    cells.insert(position + 1, nbformat.v4.new_code_cell(parameters))
    # The kernel starts commands such as `!detris train` from the environment of the tests.
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(folder))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    assert "error: " not in texts(notebook)  # a command that fails does not stop a notebook
    return notebook


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_compiles_has_outputs_and_accepted_commands(file):
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert file.stat().st_size < 400_000
    commands = []
    for cell in code_cells(notebook):
        lines = cell.source.splitlines()
        commands += [line[1:] for line in lines if line.startswith("!")]
        ast.parse("\n".join(line for line in lines if not line.startswith("!")))
        assert not [output for output in cell.outputs if output.output_type == "error"]
    assert sum("parameters" in cell.metadata.get("tags", ()) for cell in notebook.cells) == 1
    assert shown_images(notebook) >= 2
    assert not re.findall(r"(/home|/root|/tmp|/work)/\S*", nbformat.writes(notebook))
    # A variable such as {CHECKPOINT} is one value; {OPTIONS} is a list of options.
    for command in commands:
        (words,) = simple_commands(re.sub(r"\{OPTIONS\}", "", command))
        assert words[0] == "detris"
        assert parse(words[1:]) is None, command


@pytest.mark.slow
def test_segment_by_sentence_runs_as_committed(tmp_path, monkeypatch):
    """In the folders of a clone after `make quickstart`, here with a smaller dataset."""
    data, folder = tmp_path / "quickstart/data", tmp_path / "examples/notebooks"
    folder.mkdir(parents=True)
    write_refshapes(data, train=8, val=2, test=3, image_size=64)
    options = f"--preset tiny --dataset refshapes --data_root {data} --epochs 1 --batch_size 4 --num_workers 0"
    main(["train", *options.split(), "--output_dir", str(tmp_path / "quickstart/run")])
    notebook = execute("segment_by_sentence.ipynb", folder, monkeypatch)
    assert '"segmentation"' in texts(notebook)
    assert shown_images(notebook) >= 4
    assert (folder / "shapes.png").is_file()


@pytest.mark.slow
def test_your_own_data_trains_a_checkpoint(tmp_path, monkeypatch):
    parameters = """
        TRAIN_IMAGES, VAL_IMAGES = 6, 3
        OPTIONS = "--preset tiny --epochs 1 --batch_size 4 --num_workers 0"
    """
    notebook = execute("your_own_data.ipynb", tmp_path, monkeypatch, re.sub(r"^ +", "", parameters, flags=re.M))
    assert "expressions shuffled" in texts(notebook)
    assert (tmp_path / "runs/shapes/best/head.safetensors").is_file()
    assert shown_images(notebook) == 3


def test_notebooks_are_found():
    assert [file.name for file in NOTEBOOKS] == ["segment_by_sentence.ipynb", "your_own_data.ipynb"]
