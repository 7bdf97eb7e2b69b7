"""From `detris train --push_to_hub` to `detris evaluate --checkpoint user/name`, over the Hub of `hub_server`.

One process imports everything and forks for each command, so that each runs, prints and ends as a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModelWithProjection, Dinov2WithRegistersModel

from detris_peft import DetrisForReferringSegmentation, DetrisProcessor, presets
from detris_peft.data.refshapes import write_refshapes
from detris_peft.tokenization_detris import train_tokenizer
from tests.helpers import toy_run
from tests.helpers.hub_server import running

# Reads lists of [arguments, environment, output file]: the commands of a list run side by side.
COMMANDS = """
import gc, json, os, sys
import detris_peft.cli
from detris_peft.cli import evaluate, predict, train
from matplotlib import pyplot
from transformers import AutoTokenizer, CLIPTextModelWithProjection, Dinov2WithRegistersModel

gc.freeze()  # or else each command ends by sweeping up all that was imported
for line in sys.stdin:
    children = []
    for arguments, environment, output in json.loads(line):
        children.append(os.fork())
        if not children[-1]:
            os.environ.update(environment)
            file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1), os.dup2(file, 2)
            sys.exit(detris_peft.cli.main(arguments))
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), flush=True)
"""
DATA = ["--dataset", "refshapes", "--data_root", "data", "--num_workers", "0"]
TRAIN = ["train", "--preset", "tiny", *DATA, "--epochs", "1", "--batch_size", "5", "--learning_rate", "0.0003"]
BACKBONES = ["--vision_model", "user/dino", "--text_model", "user/clip"]
CHECKPOINT = {
    "README.md",
    "config.json",
    "head.safetensors",
    "vision_adapter/adapter_config.json",
    "vision_adapter/adapter_model.safetensors",
    "text_adapter/adapter_config.json",
    "text_adapter/adapter_model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def hub():
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def place(hub, tmp_path_factory):
    """`data/`, and what the Hub holds before the training: two backbones, the text encoder's with its tokenizer."""
    place = tmp_path_factory.mktemp("push")
    write_refshapes(place / "data", train=10, val=4, test=1, image_size=64)
    presets.random_backbones(presets.get("tiny"), place)
    (rows, _) = toy_run.load_rows(place / "data")
    words = [sentence for sentences in rows["sentences"] for sentence in sentences]
    train_tokenizer([*words, "zebra"], 160).save_pretrained(place / "text-0")  # unlike one that is made of the data
    train_tokenizer(["".join(map(chr, range(33, 133))) + " red red"] * 9, 220).save_pretrained(place / "large")
    hub.add_folder("user/dino", place / "vision-0")
    hub.add_folder("user/clip", place / "text-0")
    return place


@pytest.fixture(scope="module")
def detris(hub, place):
    """Runs `detris` with these arguments: returns its exit code and what it printed; several ranks run together."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(place / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", COMMANDS],
        env=environment,
        cwd=place,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def run(*arguments, token="hf_writer", ranks=({},)):
        outputs = [str(place / f"output-{i}.txt") for i in range(len(ranks))]
        commands = [
            [[*map(str, arguments)], {"HF_TOKEN": token, **rank}, output]
            for rank, output in zip(ranks, outputs, strict=True)
        ]
        print(json.dumps(commands), file=process.stdin, flush=True)
        codes = json.loads(process.stdout.readline())
        printed = [Path(output).read_text() for output in outputs]
        return (codes, printed) if len(ranks) > 1 else (codes[0], printed[0])

    yield run
    process.stdin.close()
    process.wait(30)


@pytest.fixture(scope="module")
def trained(detris, place):
    """What a run printed that was pushed to user/shapes; it lies in `run/`."""
    command = [*TRAIN, *BACKBONES, "--push_to_hub", "user/shapes", "--output_dir", "run"]
    # So short a run falls from a mask of nearly everything to none: its best is an early one, not the last.
    code, printed = detris(*command, "--eval_steps", "1")
    assert code == 0, printed
    return printed


@pytest.fixture(scope="module")
def best(trained, place):
    return json.loads((place / "run/metrics.json").read_text())["best"]


def repository(hub, name="user/shapes"):
    return hub.repositories[name].at("main")[1]


def errors(printed):
    return [line for line in printed.splitlines() if "rror" in line]


def test_the_name_alone_gives_the_scores_that_the_run_printed(trained, best, detris, place):
    code, printed = detris("evaluate", "--checkpoint", "user/shapes", *DATA, "--output", "scores.json")
    assert code == 0, printed
    (line,) = [line for line in printed.splitlines() if line.startswith("refshapes val (")]
    scores = line.split("): ")[1]
    assert [line for line in trained.splitlines() if line.endswith(f"val {scores}")]
    written = json.loads((place / "scores.json").read_text())
    for name in ("mIoU", "oIoU", "Pr@0.5"):
        assert written[name] == pytest.approx(best[name], abs=1e-6)
    assert best["mIoU"] > 0.02  # or else nothing was compared


def loads(folder, place):
    """A checkpoint without the Hub, its backbones from the disk."""
    return DetrisForReferringSegmentation.from_pretrained(
        folder,
        vision_model=Dinov2WithRegistersModel.from_pretrained(place / "vision-0"),
        text_model=CLIPTextModelWithProjection.from_pretrained(place / "text-0"),
    )


def test_the_name_alone_predicts_as_the_folder_does(trained, detris, place):
    image, text = min((place / "data/images/train2014").glob("*_val_*.jpg")), "the red circle"
    inputs = DetrisProcessor.from_pretrained(place / "run/best")(images=Image.open(image), text=text)
    with torch.no_grad():
        logits = loads(place / "run/best", place)(inputs["pixel_values"], inputs["input_ids"]).logits
    middle = logits.sigmoid().median().item()
    masks = []
    for checkpoint in ("user/shapes", "run/best"):
        predict = ["predict", "--checkpoint", checkpoint, "--image", image, "--text", text, "--threshold", middle]
        code, printed = detris(*predict, "--output", "out.png")
        assert code == 0, printed
        masks.append(np.asarray(Image.open(place / "out_mask.png")))
    assert (masks[0] == masks[1]).all()
    assert 0.1 < (masks[0] > 0).mean() < 0.9


def test_the_card_tells_what_it_is_and_how_well_it_does(trained, best, hub):
    card = ModelCard(repository(hub)["README.md"].decode())
    assert card.data.library_name == "peft"
    assert card.data.base_model == ["user/dino", "user/clip"]
    assert card.data.pipeline_tag == "image-segmentation"
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == ["refshapes"]
    scores = {result.metric_name: result.metric_value for result in card.data.eval_results}
    for name in ("mIoU", "oIoU"):
        assert scores[name] == pytest.approx(best[name], abs=1e-6)
    assert {(r.dataset_name, r.dataset_split) for r in card.data.eval_results} == {("refshapes", "val")}
    assert 'from_pretrained("user/shapes")' in card.text
    assert "path/or/repository" not in card.text


def test_adapters_head_processor_and_card_are_all_that_is_pushed(trained, hub, place):
    files = repository(hub)
    assert set(files) - {".gitattributes"} == CHECKPOINT
    pushed = [value for file in (place / "run/best").rglob("*.safetensors") for value in load_file(file).values()]
    for kind in ("vision", "text"):
        frozen = [v for v in load_file(place / f"{kind}-0/model.safetensors").values() if v.numel() > 1000]
        assert frozen
        assert not [1 for old in frozen for new in pushed if torch.equal(old, new)]
    assert all(files[name] == (place / "run/best" / name).read_bytes() for name in CHECKPOINT - {"README.md"})
    vocabulary = json.loads((place / "text-0/tokenizer.json").read_text())["model"]["vocab"]
    assert json.loads(files["tokenizer.json"])["model"]["vocab"] == vocabulary
    assert str(place) not in "".join(content.decode() for name, content in files.items() if "tensors" not in name)


@pytest.mark.parametrize(
    ("token", "backbones", "says"),
    [
        ("hf_wrong", BACKBONES, r"user/none cannot be pushed to: the Hub refuses the token \(401, .*: log in"),
        ("hf_writer", [], r"The vision backbone is the local folder none/\S+, which nobody else has"),
        ("hf_writer", [*BACKBONES, "--tokenizer", "large"], r"The tokenizer large has 220 tokens, .* knows 160: give"),
        ("hf_writer", [*BACKBONES[:2], "--text_model", "text-0"], r"The text backbone is the local folder text-0,"),
    ],
)
def test_what_would_be_refused_at_the_end_is_refused_before_the_training(detris, hub, place, token, backbones, says):
    code, printed = detris(*TRAIN, *backbones, "--push_to_hub", "user/none", "--output_dir", "none", token=token)
    assert code == 1
    assert re.match(f"error: {says}", printed), printed
    assert printed.count("\n") == 1
    assert not {"run.json", "best", "last"} & {path.name for path in (place / "none").glob("*")}
    assert "user/none" not in hub.repositories


def test_a_push_that_fails_leaves_the_weights_and_says_where(detris, hub, place):
    """… and the same command with --resume latest pushes them, without a step of training."""
    command = [*TRAIN, *BACKBONES, "--push_to_hub", "user/late", "--output_dir", "late"]
    hub.faults = {"/commit/": 403}
    try:
        code, printed = detris(*command)
    finally:
        hub.faults = {}
    assert code == 1
    (error,) = errors(printed)
    assert re.fullmatch(
        r"error: user/late was not pushed to: the Hub refuses the token \(403, Out of order\): .*; the weights are "
        r"whole in late/best; to push them again: hf upload user/late late/best\.",
        error,
    )
    assert len(hub.repositories["user/late"].commits) == 1  # the empty one
    loads(place / "late/best", place)
    before = (place / "late/metrics.jsonl").read_text()
    code, printed = detris(*command, "--resume", "latest")
    assert code == 0, printed
    assert set(repository(hub, "user/late")) - {".gitattributes"} == CHECKPOINT
    assert (place / "late/metrics.jsonl").read_text() == before


def test_of_two_processes_one_pushes_and_one_tells_of_a_failure(detris, hub, place):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    hub.faults = {"/commit/": 500}
    hub.requests.clear()
    try:
        codes, printed = detris(*TRAIN, *BACKBONES, "--push_to_hub", "user/two", "--output_dir", "two", ranks=ranks)
    finally:
        hub.faults = {}
    assert codes == [1, 0], printed
    (error,) = errors(printed[0])
    assert "the Hub answers 500 (Out of order); the weights are whole in two/best;" in error
    assert not errors(printed[1])
    assert hub.requests.count("POST /api/repos/create") == 1
    loads(place / "two/best", place)
