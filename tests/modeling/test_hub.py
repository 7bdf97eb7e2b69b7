"""To a Hub and back, end to end, over `hub_server`: see there for what kind of Hub it is.

The Hub's client runs in one process of its own for the whole file, because huggingface_hub reads the Hub's address
when it is imported. It writes through Git LFS (HF_HUB_DISABLE_XET): Xet's store is a service of its own.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection, Dinov2WithRegistersModel

from detris_peft import DetrisForReferringSegmentation, DetrisProcessor
from detris_peft.modeling.hub import check_backbones_on_hub, check_hub_access, push_folder
from detris_peft.modeling.model_card import TrainingResults, write_model_card
from detris_peft.tokenization_detris import train_tokenizer
from tests.helpers.hub_server import running
from tests.helpers.tiny_models import image_encoder, inputs, perturb, text_encoder, tiny_config

CLIENT = """
import json, os, sys
answers, sys.stdout = sys.stdout, sys.stderr
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from detris_peft import DetrisForReferringSegmentation as Model, DetrisProcessor
from detris_peft.modeling.hub import check_hub_access, push_folder

def logits(model):
    with torch.no_grad():
        save_file({"logits": model(**load_file("in.safetensors")).logits.contiguous()}, "out.safetensors")

for line in sys.stdin:
    names, said = dict(globals()), None
    try:
        exec(json.loads(line), names)
    except Exception as error:
        said = [type(error).__name__, str(error)]
    print(json.dumps([said, names.get("answer")]), file=answers, flush=True)
"""


@pytest.fixture(scope="module")
def hub():
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def place(hub, tmp_path_factory):
    """`run/`, a trained checkpoint with its processor over backbones of the Hub, and what it answers to a batch."""
    place = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    image_encoder().save_pretrained(place / "dino")
    text_encoder().save_pretrained(place / "clip")
    hub.add_folder("user/dino", place / "dino")
    hub.add_folder("user/clip", place / "clip")
    model = DetrisForReferringSegmentation.from_backbones(
        Dinov2WithRegistersModel.from_pretrained(place / "dino"),
        CLIPTextModelWithProjection.from_pretrained(place / "clip"),
        tiny_config(),
    )
    model.config.vision_name_or_path, model.config.text_name_or_path = "user/dino", "user/clip"
    perturb(model)
    save_run(model.eval(), place / "run")
    tokenizer = train_tokenizer(["the red mug on the left", "a blue one"], 60)
    DetrisProcessor.from_config(model.config, tokenizer).save_pretrained(place / "run")
    batch = {k: v for k, v in inputs().items() if k != "labels"}
    save_file(batch, place / "in.safetensors")
    with torch.no_grad():
        save_file({"logits": model(**batch).logits.contiguous()}, place / "wanted.safetensors")
    return place


def save_run(model, folder):
    model.save_pretrained(folder)
    results = {"loss": 0.2, "mIoU": 0.7512345678, "oIoU": 0.75, "Pr@0.5": 0.9, "epoch": 3}
    options = {"preset": "tiny", "epochs": 3, "output_dir": "/home/me"}
    write_model_card(folder, TrainingResults(results, "refcoco+", "val", options=options))


@pytest.fixture(scope="module")
def environment(hub, place):
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(place / "home"),
        "HF_TOKEN": "hf_writer",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


@pytest.fixture(scope="module")
def client(environment, place):
    """Runs code in the client's process: returns what it puts into `answer`, raises what it raises."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        env=environment,
        cwd=place,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def run(code):
        print(json.dumps(code), file=process.stdin, flush=True)
        error, answer = json.loads(process.stdout.readline())
        if error:
            raise Refused(*error)
        return answer

    yield run
    process.stdin.close()
    process.wait(30)


class Refused(Exception):  # noqa: N818
    def __init__(self, kind, message):
        super().__init__(f"{kind}: {message}")
        assert "\n" not in message


@pytest.fixture
def copy(place, tmp_path):
    """A checkpoint folder that a test may change."""
    return Path(shutil.copytree(place / "run", tmp_path / "copy"))


def answers_as_trained(place):
    return torch.equal(*(load_file(place / f"{name}.safetensors")["logits"] for name in ("out", "wanted")))


def test_pushed_and_loaded_by_name(hub, client, place):
    """What is uploaded is checkpoint and processor, in one commit; by its name alone the model answers as before."""
    (place / "run/optimizer.bin").write_bytes(b"of the run")
    client('push_folder("run", "user/whole", private=True)')
    repository = hub.repositories["user/whole"]
    assert repository.private
    assert len(repository.commits) == 2  # the empty repository's, and ours
    saved = {str(f.relative_to(place / "run")) for f in (place / "run").rglob("*") if f.is_file()}
    _, files = repository.at("main")
    assert set(files) - {".gitattributes"} == saved - {"optimizer.bin"}
    assert {"head.safetensors", "vision_adapter/adapter_model.safetensors"} <= repository.lfs
    repository.commit("main", {**files, "optimizer.bin": b"not for loading"})
    client('logits(Model.from_pretrained("user/whole"))')
    assert answers_as_trained(place)
    (place / "out.safetensors").unlink()
    client('model = AutoModel.from_pretrained("user/whole"); assert type(model) is Model; logits(model)')
    assert answers_as_trained(place)
    assert not [request for request in hub.requests if "optimizer.bin" in request]
    ids = client('answer = DetrisProcessor.from_pretrained("user/whole")(text="the red mug")["input_ids"].tolist()')
    assert ids == DetrisProcessor.from_pretrained(place / "run")(text="the red mug")["input_ids"].tolist()


def test_the_card_that_was_pushed_tells_the_results_and_its_lines_work(hub, client, place):
    client('push_folder("run", "user/card")')
    text = hub.repositories["user/card"].at("main")[1]["README.md"].decode()
    card = ModelCard(text)
    assert card.data.base_model == ["user/dino", "user/clip"]
    assert {r.metric_name: r.metric_value for r in card.data.eval_results}["mIoU"] == 0.751235
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    Image.fromarray(np.zeros((50, 90, 3), np.uint8)).save(place / "photo.jpg")
    shape = client(f"{blocks[0]}\nanswer = list(mask.shape), str(mask.dtype)")
    assert shape == [[50, 90], "torch.bool"]
    adapter = client(f"""{blocks[1]}
save_file(image_encoder.state_dict(), "adapted.safetensors")
answer = image_encoder.peft_config["default"].peft_type
""")
    assert adapter == "DENSE_ALIGNER"
    wanted = load_file(place / "run/vision_adapter/adapter_model.safetensors").values()
    loaded = [*load_file(place / "adapted.safetensors").values()]
    assert all(any(torch.equal(weight, other) for other in loaded) for weight in wanted)


def test_a_model_in_memory_is_pushed_and_leaves_nothing_on_the_disk(hub, client, place):
    (place / "tmp").mkdir()
    client("""
import tempfile
tempfile.tempdir = "tmp"
try:
    Model.from_pretrained("run").push_to_hub("user/memory", commit_message="from memory")
finally:
    tempfile.tempdir = None
DetrisProcessor.from_pretrained("run").push_to_hub("user/memory")
logits(Model.from_pretrained("user/memory"))
DetrisProcessor.from_pretrained("user/memory")
""")
    assert answers_as_trained(place)
    assert not [*(place / "tmp").iterdir()]


def test_revisions(hub, client, copy, place):
    client('push_folder("run", "user/branches")')
    first = hub.repositories["user/branches"].branches["main"]
    head = {k: torch.zeros_like(v) for k, v in load_file(copy / "head.safetensors").items()}
    save_file(head, copy / "head.safetensors", metadata={"format": "pt"})
    client(f'push_folder({str(copy)!r}, "user/branches", revision="zeros")')
    assert hub.repositories["user/branches"].branches["main"] == first
    client('logits(Model.from_pretrained("user/branches", revision="zeros"))')
    assert not answers_as_trained(place)
    client(f'push_folder({str(copy)!r}, "user/branches")')
    client('logits(Model.from_pretrained("user/branches"))')
    assert not answers_as_trained(place)
    client(f'logits(Model.from_pretrained("user/branches", revision="{first}"))')
    assert answers_as_trained(place)
    with pytest.raises(Refused, match=r"FileNotFoundError: There is no folder user/branches, .* Hub: 404"):
        client('Model.from_pretrained("user/branches", revision="none")')


def test_an_upload_that_is_killed_leaves_the_old_revision_whole(hub, client, copy, place):
    client('push_folder("run", "user/killed")')
    before = hub.repositories["user/killed"].at("main")
    (copy / "README.md").write_text("# Another\n")
    head = load_file(copy / "head.safetensors")
    save_file({k: v + 1 for k, v in head.items()}, copy / "head.safetensors", metadata={"format": "pt"})
    hub.uploading.clear()
    hub.hold = threading.Event()
    pid = client(f"""
answer = os.fork()
if not answer:
    push_folder({str(copy)!r}, "user/killed")
    os._exit(0)
""")
    assert hub.uploading.wait(60)
    os.kill(pid, signal.SIGKILL)
    hub.hold.set()
    hub.hold = None
    assert client(f"answer = os.waitpid({pid}, 0)[1]") == signal.SIGKILL
    assert hub.repositories["user/killed"].at("main") == before
    client('logits(Model.from_pretrained("user/killed"))')
    assert answers_as_trained(place)
    client(f'push_folder({str(copy)!r}, "user/killed")')
    assert hub.repositories["user/killed"].at("main")[1]["README.md"] == b"# Another\n"


@pytest.mark.parametrize(
    ("name", "token", "faults", "says"),
    [
        (
            "user/x",
            "hf_wrong",
            {},
            r"PermissionError: .* refuses the token \(401, Invalid username .*\): log in",
        ),
        ("user/x", "hf_reader", {}, r"PermissionError: .* refuses the token \(403, You have read access only\)"),
        ("other/x", "hf_writer", {}, r"PermissionError: .* rights to create a model under the namespace other"),
        (
            "user/x",
            "hf_writer",
            {"/repos/create": 0},
            r"ConnectionError: .* cannot be reached, or .* broke off",
        ),
        ("user/x", "hf_writer", {"/commit/": 500}, r"OSError: .*the Hub answers 500 \(Out of order\)"),
    ],
)
def test_where_a_push_fails_the_weights_stay_and_the_message_says_where(hub, client, place, name, token, faults, says):
    hub.faults = faults
    try:
        with pytest.raises(Refused, match=says) as refused:
            client(f'push_folder("run", "{name}", token="{token}")')
        again = rf"weights are whole in run; to push them again: hf upload {name} run\.$"
        assert re.search(again, str(refused.value))
        if token == "hf_reader":
            with pytest.raises(Refused, match=r"weights are whole in (\S*detris-\w+);") as refused:
                client('Model.from_pretrained("run").push_to_hub("user/x", token="hf_reader")')
            folder = re.search(r"whole in (\S+);", str(refused.value))[1]
            assert (Path(folder) / "head.safetensors").is_file()
            shutil.rmtree(folder)
    finally:
        hub.faults = {}


def test_the_command_that_a_failed_push_names_pushes(hub, environment, place):
    command = shlex.split("hf upload user/again run")
    command[0] = str(Path(sys.executable).parent / "hf")
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = hub.repositories["user/again"].at("main")[1]
    assert files["head.safetensors"] == (place / "run/head.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "token", "says"),
    [
        ("user/x", "hf_writer", None),
        ("lab/x", "hf_writer", None),
        ("x", "hf_writer", None),
        ("user/x", "hf_wrong", r"PermissionError: user/x cannot be pushed to: the Hub refuses the token \(401, "),
        ("user/x", "hf_reader", "PermissionError: .* user's token may only read: log in"),
        ("other/x", "hf_writer", "PermissionError: .* the token is user's, who does not belong to other: log in"),
        ("museum/x", "hf_writer", "PermissionError: .* user may only read in museum: log in"),
    ],
)
def test_access_is_checked_before_the_work(hub, client, name, token, says):
    before = {**hub.repositories}
    if says is None:
        client(f'check_hub_access("{name}", "{token}")')
    else:
        with pytest.raises(Refused, match=says):
            client(f'check_hub_access("{name}", "{token}")')
    assert hub.repositories == before


def test_a_model_without_an_adapter_takes_the_old_one_off_the_hub(hub, client, place):
    client('push_folder("run", "user/less")')
    client("""
model = Model.from_pretrained("run")
config = model.config
config.text_adapter = None
text = model.text_model.unload()
model = Model(config, model.vision_model.unload(), text)
model.save_pretrained("less", push_to_hub=True, repo_id="user/less", commit_message="without text adapter")
""")
    repository = hub.repositories["user/less"]
    assert len(repository.commits) == 3
    assert not [name for name in repository.at("main")[1] if name.startswith("text_adapter")]
    client('Model.from_pretrained("user/less")')


# -- without a Hub ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a/b/c", "user/", "user/mo del", "--x"])
def test_what_is_no_name(name, place):
    for push in (lambda: check_hub_access(name), lambda: push_folder(place / "run", name)):
        with pytest.raises(ValueError, match=r"cannot be the name of a Hub repository \(.*Give user/name\.$"):
            push()


def test_offline_mode_is_named(place):
    with pytest.raises(ConnectionError, match=r"HF_HUB_OFFLINE is set: unset it; the weights are whole in .*run;"):
        push_folder(place / "run", "user/detris", token="hf_writer")


def test_local_backbones_are_not_pushed_by_path(place, tmp_path):
    model = DetrisForReferringSegmentation.from_backbones(
        Dinov2WithRegistersModel.from_pretrained(place / "dino"),
        CLIPTextModelWithProjection.from_pretrained(place / "clip"),
        tiny_config(),
    )
    model.save_pretrained(tmp_path / "run")
    for push in (
        lambda: model.push_to_hub("user/detris"),
        lambda: push_folder(tmp_path / "run", "user/detris"),
        lambda: check_backbones_on_hub(model.config),
    ):
        with pytest.raises(ValueError, match=r"vision backbone is the local folder .*dino, which nobody else has"):
            push()


def test_half_a_checkpoint_is_not_pushed(copy):
    (copy / "head.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks .*head\.safetensors"):
        push_folder(copy, "user/detris")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        push_folder(copy.parent, "user/detris")
