"""From `detris train --push_to_hub` to `detris evaluate --checkpoint user/name`, with the Hub of `hub_server`.

One process imports everything and forks for each command, so that each command runs in a separate process.
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
from tests.helpers.hub_server import run_hub_server

# Reads lists of [arguments, environment, output file]; the commands of a list run in parallel.
COMMANDS = """
import functools, gc, json, os, sys
import detris_peft.cli
from detris_peft.cli import evaluate, predict, train, training_run
from detris_peft.training import results
from PIL import Image
from transformers import AutoTokenizer, CLIPTextModelWithProjection, Dinov2WithRegistersModel

Image.init()
# The plots would take more time than so short a run: no curves, and one prediction instead of six.
results.plot_curves = lambda *_: None
results.plot_predictions = functools.partial(results.plot_predictions, count=1)
gc.freeze()  # otherwise each command ends with a garbage collection of all imports
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
    "assets/detris_predictions.jpg",
    "config.json",
    "head.safetensors",
    "manifest.json",
    "model.safetensors.index.json",
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
    with run_hub_server() as server:
        yield server


@pytest.fixture(scope="module")
def folder(hub, tmp_path_factory):
    """Write `data/`, and put two backbones on the Hub before the training, the text encoder with its tokenizer."""
    folder = tmp_path_factory.mktemp("push")
    write_refshapes(folder / "data", train=10, val=4, test=1, image_size=64)
    presets.random_backbones(presets.get("tiny"), folder)
    (rows, _) = toy_run.load_rows(folder / "data")
    words = [sentence for sentences in rows["sentences"] for sentence in sentences]
    train_tokenizer([*words, "zebra"], 160).save_pretrained(folder / "text-0")  # differs from one trained on the data
    train_tokenizer(["".join(map(chr, range(33, 133))) + " red red"] * 9, 220).save_pretrained(folder / "large")
    hub.add_folder("user/dino", folder / "vision-0")
    hub.add_folder("user/clip", folder / "text-0")
    return folder


@pytest.fixture(scope="module")
def detris(hub, folder):
    """Run `detris` with these arguments and return its exit code and output; several ranks run in parallel."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", COMMANDS],
        env=environment,
        cwd=folder,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def run(*arguments, token="hf_writer", ranks=({},)):
        outputs = [str(folder / f"output-{i}.txt") for i in range(len(ranks))]
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
def trained(detris, folder):
    """Train in `run/`, push to user/shapes, and return the output."""
    command = [*TRAIN, *BACKBONES, "--push_to_hub", "user/shapes", "--output_dir", "run"]
    # In so short a run, the predicted masks shrink from nearly everything to nothing: the best evaluation is an early
    # one.
    code, printed = detris(*command, "--eval_steps", "1")
    assert code == 0, printed
    return printed


@pytest.fixture(scope="module")
def best(trained, folder):
    return json.loads((folder / "run/metrics.json").read_text())["best"]


def repository(hub, name="user/shapes"):
    return hub.repositories[name].at("main")[1]


def errors(printed):
    return [line for line in printed.splitlines() if "rror" in line]


def test_evaluating_by_repository_name_gives_the_scores_of_the_run(trained, best, detris, folder):
    code, printed = detris("evaluate", "--checkpoint", "user/shapes", *DATA, "--output", "scores.json")
    assert code == 0, printed
    (line,) = [line for line in printed.splitlines() if line.startswith("refshapes val (")]
    scores = line.split("): ")[1]
    assert [line for line in trained.splitlines() if line.endswith(f"val {scores}")]
    written = json.loads((folder / "scores.json").read_text())
    for name in ("mIoU", "oIoU", "Pr@0.5"):
        assert written[name] == pytest.approx(best[name], abs=1e-6)
    assert best["mIoU"] > 0.02  # otherwise nothing is compared


def load(checkpoint, folder):
    """Load a checkpoint without the Hub, with the backbones from disk."""
    return DetrisForReferringSegmentation.from_pretrained(
        checkpoint,
        vision_model=Dinov2WithRegistersModel.from_pretrained(folder / "vision-0"),
        text_model=CLIPTextModelWithProjection.from_pretrained(folder / "text-0"),
    )


def test_predicting_by_repository_name_gives_the_masks_of_the_folder(trained, detris, folder):
    image, text = min((folder / "data/images/train2014").glob("*_val_*.jpg")), "the red circle"
    inputs = DetrisProcessor.from_pretrained(folder / "run/best")(images=Image.open(image), text=text)
    with torch.no_grad():
        logits = load(folder / "run/best", folder)(inputs["pixel_values"], inputs["input_ids"]).logits
    middle = logits.sigmoid().median().item()
    masks = []
    for checkpoint in ("user/shapes", "run/best"):
        predict = ["predict", "--checkpoint", checkpoint, "--image", image, "--text", text, "--threshold", middle]
        code, printed = detris(*predict, "--output", "out.png", "--overwrite")
        assert code == 0, printed
        masks.append(np.asarray(Image.open(folder / "out_mask.png")))
    assert (masks[0] == masks[1]).all()
    assert 0.1 < (masks[0] > 0).mean() < 0.9


def test_the_model_card_has_metadata_and_scores(trained, best, hub):
    card = ModelCard(repository(hub)["README.md"].decode())
    assert card.data.library_name == "detris-peft"
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


def test_only_adapters_head_processor_and_card_are_pushed(trained, hub, folder):
    files = repository(hub)
    assert set(files) - {".gitattributes"} == CHECKPOINT
    pushed = [value for file in (folder / "run/best").rglob("*.safetensors") for value in load_file(file).values()]
    for kind in ("vision", "text"):
        frozen = [v for v in load_file(folder / f"{kind}-0/model.safetensors").values() if v.numel() > 1000]
        assert frozen
        assert not [1 for old in frozen for new in pushed if torch.equal(old, new)]
    assert all(files[name] == (folder / "run/best" / name).read_bytes() for name in CHECKPOINT - {"README.md"})
    vocabulary = json.loads((folder / "text-0/tokenizer.json").read_text())["model"]["vocab"]
    assert json.loads(files["tokenizer.json"])["model"]["vocab"] == vocabulary
    texts = [content.decode() for name, content in files.items() if not re.search(r"tensors|\.jpg", name)]
    assert str(folder) not in "".join(texts)


@pytest.mark.parametrize(
    ("token", "backbones", "message"),
    [
        ("hf_wrong", BACKBONES, r"Cannot push to user/none: the Hub rejects the token \(401, .*; log in"),
        ("hf_writer", [], r"push_to_hub: expected a vision backbone on the Hub, got none, .*; pass --vision_model,"),
        (
            "hf_writer",
            [*BACKBONES, "--tokenizer", "large"],
            r"tokenizer large: expected at most 160 .* got 220;",
        ),
        (
            "hf_writer",
            [*BACKBONES[:2], "--text_model", "text-0"],
            r"expected a text backbone on the Hub, got the local folder /.*/text-0;",
        ),
    ],
)
def test_a_push_that_would_fail_is_refused_before_the_training(detris, hub, folder, token, backbones, message):
    code, printed = detris(*TRAIN, *backbones, "--push_to_hub", "user/none", "--output_dir", "none", token=token)
    assert code == 1
    recipe, error = printed.splitlines()
    assert recipe.startswith("Recipe of tiny: ")
    assert re.match(f"error: {message}", error)
    assert not (folder / "none").exists()
    assert "user/none" not in hub.repositories


def test_a_failed_push_keeps_the_weights_and_can_be_repeated(detris, hub, folder):
    """The same command with --resume latest pushes them without further training."""
    command = [*TRAIN, *BACKBONES, "--push_to_hub", "user/late", "--output_dir", "late"]
    hub.faults = {"/commit/": 403}
    try:
        code, printed = detris(*command)
    finally:
        hub.faults = {}
    assert code == 1
    (error,) = errors(printed)
    assert re.fullmatch(
        r"error: Push to user/late failed: the Hub rejects the token \(403, Out of order\); .*; the weights are "
        r"saved in late/best; to push them again: hf upload user/late late/best\.",
        error,
    )
    assert len(hub.repositories["user/late"].commits) == 1  # the initial one
    load(folder / "late/best", folder)
    before = (folder / "late/metrics.jsonl").read_text()
    code, printed = detris(*command, "--resume", "latest")
    assert code == 0, printed
    assert set(repository(hub, "user/late")) - {".gitattributes"} == CHECKPOINT
    assert (folder / "late/metrics.jsonl").read_text() == before


def test_of_two_ranks_one_pushes_and_reports_a_failure(detris, hub, folder):
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
    assert "the Hub responds with 500 (Out of order); the weights are saved in two/best;" in error
    assert not errors(printed[1])
    assert hub.requests.count("POST /api/repos/create") == 1
    load(folder / "two/best", folder)
