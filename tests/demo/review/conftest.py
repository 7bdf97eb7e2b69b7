"""A folder of objects with metadata.jsonl, and the page that serves it."""

from __future__ import annotations

import json
import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import pytest
from PIL import Image

from detris_peft.data.sources import DataSource
from detris_peft.data.tools.review import ReviewFolder
from detris_peft.demo.environment import gradio_environment
from detris_peft.demo.review.page import build_page
from detris_peft.demo.server import start_page

SIZE = 60, 40  # width, height of the images
BOX = [10, 10, 30, 10, 30, 30, 10, 30]
SPLITS = {"train": 4, "val": 2}  # number of objects


def write_folder(folder):
    """Write objects 0, 1, ... of every split, object 1 of train without an image."""
    for split, count in SPLITS.items():
        (folder / split).mkdir(parents=True)
        Image.new("RGB", SIZE, (40, 90, 200)).save(folder / split / "a.png")
        with open(folder / split / "metadata.jsonl", "w", encoding="utf-8") as file:
            for index in range(count):
                name = "missing.png" if (split, index) == ("train", 1) else "a.png"
                texts = [f"{split} {index}", f"object {index} of {split}"]
                row = {"file_name": name, "sentences": texts, "mask": BOX, "category": "box", "note": split}
                file.write(json.dumps(row) + "\n")
    return folder


def read_lines(folder, split="train"):
    return [json.loads(line) for line in (folder / split / "metadata.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("review") / "set")


@pytest.fixture
def folder(written):
    """The folder of the servers, with its original content."""
    files = {file: file.read_bytes() for file in written.glob("*/*")}
    yield written
    for file, content in files.items():
        if file.read_bytes() != content:
            file.write_bytes(content)


def serve(folder, host="127.0.0.1"):
    """Yield the address of the page of a folder."""
    with gradio_environment():
        page = build_page(ReviewFolder(DataSource(str(folder))), "my <b>set</b>", host)
        yield start_page(page, port=0)
        page.close(verbose=False)


@pytest.fixture(scope="module")
def running(written):
    yield from serve(written)


@pytest.fixture(scope="module")
def other_running(written):
    yield from serve(written, "My-Machine")


@pytest.fixture
def server(running, folder):
    return running


@pytest.fixture
def other_server(other_running, folder):
    return other_running
