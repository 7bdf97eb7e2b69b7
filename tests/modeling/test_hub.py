"""Pushing to a Hub and loading from it, end to end, against the local server of `tests/helpers/hub_server.py`.

The client of the Hub runs in one separate process for all tests of this file, because huggingface_hub reads the Hub's
address when it is imported. It uploads with Git LFS (HF_HUB_DISABLE_XET), because Xet needs a storage service.
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
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection, Dinov2WithRegistersModel

from detris_peft import DetrisForReferringSegmentation, DetrisProcessor
from detris_peft.manifest import update_manifest
from detris_peft.modeling import hub_download
from detris_peft.modeling.hub import check_backbones_on_hub, check_hub_access, push_folder
from detris_peft.modeling.hub_benchmarks import HubBenchmark
from detris_peft.modeling.model_card import TrainingResults, write_model_card
from detris_peft.tokenization_detris import train_tokenizer
from tests.helpers.hub_server import run_hub_server
from tests.helpers.tiny_models import image_encoder, inputs, perturb, text_encoder, tiny_config

CLIENT = """
import json, os, sys
results, sys.stdout = sys.stdout, sys.stderr
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from detris_peft import DetrisForReferringSegmentation as Model, DetrisProcessor
from detris_peft.modeling.hub import check_hub_access, push_folder

def logits(model):
    with torch.no_grad():
        save_file({"logits": model(**load_file("in.safetensors")).logits.contiguous()}, "out.safetensors")

for line in sys.stdin:
    names, failure = dict(globals()), None
    try:
        exec(json.loads(line), names)
    except Exception as error:
        failure = [type(error).__name__, str(error)]
    print(json.dumps([failure, names.get("result")]), file=results, flush=True)
"""


@pytest.fixture(scope="module")
def hub():
    with run_hub_server() as server:
        yield server


@pytest.fixture(scope="module")
def workdir(hub, tmp_path_factory):
    """A folder with `run/` (a checkpoint with its processor, over backbones on the Hub), an input and its logits."""
    workdir = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    image_encoder().save_pretrained(workdir / "dino")
    text_encoder().save_pretrained(workdir / "clip")
    hub.add_folder("user/dino", workdir / "dino")
    hub.add_folder("user/clip", workdir / "clip")
    model = DetrisForReferringSegmentation.from_backbones(
        Dinov2WithRegistersModel.from_pretrained(workdir / "dino"),
        CLIPTextModelWithProjection.from_pretrained(workdir / "clip"),
        tiny_config(),
    )
    model.config.vision_name_or_path, model.config.text_name_or_path = "user/dino", "user/clip"
    perturb(model)
    save_run(model.eval(), workdir / "run")
    tokenizer = train_tokenizer(["the red mug on the left", "a blue one"], 60)
    DetrisProcessor.from_config(model.config, tokenizer).save_pretrained(workdir / "run")
    batch = {k: v for k, v in inputs().items() if k != "labels"}
    save_file(batch, workdir / "in.safetensors")
    with torch.no_grad():
        save_file({"logits": model(**batch).logits.contiguous()}, workdir / "expected.safetensors")
    return workdir


def save_run(model, folder):
    model.save_pretrained(folder)
    results = {"loss": 0.2, "mIoU": 0.7512345678, "oIoU": 0.75, "Pr@0.5": 0.9, "epoch": 3}
    options = {"preset": "tiny", "epochs": 3, "output_dir": "/home/me"}
    write_model_card(folder, TrainingResults(results, "refcoco+", "val", options=options))


@pytest.fixture(scope="module")
def environment(hub, workdir):
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(workdir / "home"),
        "HF_TOKEN": "hf_writer",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


@pytest.fixture(scope="module")
def client(environment, workdir):
    """A function that runs code in the client's process. It returns the variable `result` and re-raises errors."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        env=environment,
        cwd=workdir,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def run(code):
        print(json.dumps(code), file=process.stdin, flush=True)
        error, result = json.loads(process.stdout.readline())
        if error:
            raise ClientError(*error)
        return result

    yield run
    process.stdin.close()
    process.wait(30)


class ClientError(Exception):
    """An error of the client's process, with a message of one line."""

    def __init__(self, kind, message):
        super().__init__(f"{kind}: {message}")
        assert "\n" not in message


@pytest.fixture
def copy(workdir, tmp_path):
    """A checkpoint folder that a test may change."""
    return Path(shutil.copytree(workdir / "run", tmp_path / "copy"))


def logits_are_equal(workdir):
    return torch.equal(*(load_file(workdir / f"{name}.safetensors")["logits"] for name in ("out", "expected")))


def test_pushed_checkpoint_loads_by_its_hub_id(hub, client, workdir):
    """Checkpoint and processor are uploaded in one commit. The loaded model gives the same logits."""
    (workdir / "run/optimizer.bin").write_bytes(b"training state")
    client('push_folder("run", "user/complete", private=True)')
    repository = hub.repositories["user/complete"]
    assert repository.private
    assert len(repository.commits) == 2  # one of the empty repository, one of the push
    saved = {str(f.relative_to(workdir / "run")) for f in (workdir / "run").rglob("*") if f.is_file()}
    _, files = repository.at("main")
    assert set(files) - {".gitattributes"} == saved - {"optimizer.bin", ".detris_peft"}
    assert {"head.safetensors", "vision_adapter/adapter_model.safetensors"} <= repository.lfs
    repository.commit("main", {**files, "optimizer.bin": b"not for loading"})
    client('logits(Model.from_pretrained("user/complete"))')
    assert logits_are_equal(workdir)
    (workdir / "out.safetensors").unlink()
    client('model = AutoModel.from_pretrained("user/complete"); assert type(model) is Model; logits(model)')
    assert logits_are_equal(workdir)
    assert not [request for request in hub.requests if "optimizer.bin" in request]
    ids = client('result = DetrisProcessor.from_pretrained("user/complete")(text="the red mug")["input_ids"].tolist()')
    assert ids == DetrisProcessor.from_pretrained(workdir / "run")(text="the red mug")["input_ids"].tolist()


def test_pushed_card_shows_the_results_and_its_code_runs(hub, client, workdir):
    client('push_folder("run", "user/card")')
    text = hub.repositories["user/card"].at("main")[1]["README.md"].decode()
    card = ModelCard(text)
    assert card.data.base_model == ["user/dino", "user/clip"]
    assert {r.metric_name: r.metric_value for r in card.data.eval_results}["mIoU"] == 0.751235
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    Image.fromarray(np.zeros((50, 90, 3), np.uint8)).save(workdir / "photo.jpg")
    shape = client(f"{blocks[0]}\nresult = list(prediction.mask.shape), str(prediction.mask.dtype)")
    assert shape == [[50, 90], "bool"]
    results = client(f"{blocks[1]}\nresult = [(r['label'], r['mask'].size) for r in results]")
    assert results == [["the red mug on the left", [90, 50]], ["the table", [90, 50]]]
    adapter = client(f"""{blocks[2]}
save_file(image_encoder.state_dict(), "adapted.safetensors")
result = image_encoder.peft_config["default"].peft_type
""")
    assert adapter == "DENSE_ALIGNER"
    saved = load_file(workdir / "run/vision_adapter/adapter_model.safetensors").values()
    loaded = [*load_file(workdir / "adapted.safetensors").values()]
    assert all(any(torch.equal(weight, other) for other in loaded) for weight in saved)


def test_image_and_benchmark_results_are_pushed_and_removed_with_the_checkpoint(hub, client, copy):
    """Files of the same name that `write_model_card` did not write stay on this machine."""
    results = TrainingResults({"mIoU": 0.75}, "cups", "val", benchmarks=[HubBenchmark("org/cups", "val")])
    image = BytesIO()
    Image.new("RGB", (20, 10)).save(image, "PNG")
    write_model_card(copy, results, image.getvalue())
    attached = {"assets/detris_predictions.jpg", ".eval_results/detris_peft.yaml"}
    push = f'push_folder({str(copy)!r}, "user/attached")'
    client(push)
    files = hub.repositories["user/attached"].at("main")[1]
    assert {name: files[name] for name in attached} == {name: (copy / name).read_bytes() for name in attached}
    assert "(assets/detris_predictions.jpg)" in files["README.md"].decode()
    hub.requests.clear()
    client('Model.from_pretrained("user/attached")')
    assert [request for request in hub.requests if "head.safetensors" in request]
    assert not [request for request in hub.requests if "predictions" in request or "eval_results" in request]
    (copy / "assets/detris_predictions.jpg").unlink()
    write_model_card(copy, replace(results, benchmarks=[]))
    for name in attached:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("mine")
    client(push)
    assert not attached & {*hub.repositories["user/attached"].at("main")[1]}


def test_pushing_a_model_in_memory_leaves_no_temporary_files(hub, client, workdir):
    (workdir / "tmp").mkdir()
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
    assert logits_are_equal(workdir)
    assert not [*(workdir / "tmp").iterdir()]


def test_revisions(hub, client, copy, workdir):
    client('push_folder("run", "user/branches")')
    first = hub.repositories["user/branches"].branches["main"]
    head = {k: torch.zeros_like(v) for k, v in load_file(copy / "head.safetensors").items()}
    save_file(head, copy / "head.safetensors", metadata={"format": "pt"})
    update_manifest(copy, "head.safetensors")
    client(f'push_folder({str(copy)!r}, "user/branches", revision="zeros")')
    assert hub.repositories["user/branches"].branches["main"] == first
    client('logits(Model.from_pretrained("user/branches", revision="zeros"))')
    assert not logits_are_equal(workdir)
    client(f'push_folder({str(copy)!r}, "user/branches")')
    client('logits(Model.from_pretrained("user/branches"))')
    assert not logits_are_equal(workdir)
    client(f'logits(Model.from_pretrained("user/branches", revision="{first}"))')
    assert logits_are_equal(workdir)
    match = r"FileNotFoundError: user/branches: no such folder, .* it has no revision 'none'; pass an existing branch"
    with pytest.raises(ClientError, match=match):
        client('Model.from_pretrained("user/branches", revision="none")')


def test_killed_upload_leaves_the_old_revision_intact(hub, client, copy, workdir):
    client('push_folder("run", "user/killed")')
    before = hub.repositories["user/killed"].at("main")
    (copy / "README.md").write_text("# Another\n")
    head = load_file(copy / "head.safetensors")
    save_file({k: v + 1 for k, v in head.items()}, copy / "head.safetensors", metadata={"format": "pt"})
    update_manifest(copy, "head.safetensors")
    hub.uploading.clear()
    hub.hold = threading.Event()
    pid = client(f"""
result = os.fork()
if not result:
    push_folder({str(copy)!r}, "user/killed")
    os._exit(0)
""")
    assert hub.uploading.wait(60)
    os.kill(pid, signal.SIGKILL)
    hub.hold.set()
    hub.hold = None
    assert client(f"result = os.waitpid({pid}, 0)[1]") == signal.SIGKILL
    assert hub.repositories["user/killed"].at("main") == before
    client('logits(Model.from_pretrained("user/killed"))')
    assert logits_are_equal(workdir)
    client(f'push_folder({str(copy)!r}, "user/killed")')
    assert hub.repositories["user/killed"].at("main")[1]["README.md"] == b"# Another\n"


@pytest.mark.parametrize(
    ("name", "token", "faults", "message"),
    [
        (
            "user/x",
            "hf_wrong",
            {},
            r"PermissionError: .* rejects the token \(401, Invalid username .*\); log in",
        ),
        ("user/x", "hf_reader", {}, r"PermissionError: .* rejects the token \(403, You have read access only\)"),
        ("other/x", "hf_writer", {}, r"PermissionError: .* rights to create a model under the namespace other"),
        (
            "user/x",
            "hf_writer",
            {"/repos/create": 0},
            r"ConnectionError: .* cannot be reached, or .* was interrupted",
        ),
        ("user/x", "hf_writer", {"/commit/": 500}, r"OSError: .*the Hub responds with 500 \(Out of order\)"),
    ],
)
def test_failed_push_keeps_the_weights_and_names_their_folder(hub, client, workdir, name, token, faults, message):
    hub.faults = faults
    try:
        with pytest.raises(ClientError, match=message) as error:
            client(f'push_folder("run", "{name}", token="{token}")')
        again = rf"weights are saved in run; to push them again: hf upload {name} run\.$"
        assert re.search(again, str(error.value))
        if token == "hf_reader":
            with pytest.raises(ClientError, match=r"weights are saved in (\S*detris-\w+);") as error:
                client('Model.from_pretrained("run").push_to_hub("user/x", token="hf_reader")')
            folder = re.search(r"saved in (\S+);", str(error.value))[1]
            assert (Path(folder) / "head.safetensors").is_file()
            shutil.rmtree(folder)
    finally:
        hub.faults = {}


def test_command_in_the_message_of_a_failed_push_works(hub, environment, workdir):
    command = shlex.split("hf upload user/again run")
    command[0] = str(Path(sys.executable).parent / "hf")
    done = subprocess.run(command, env=environment, cwd=workdir, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = hub.repositories["user/again"].at("main")[1]
    assert files["head.safetensors"] == (workdir / "run/head.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("user/x", "hf_writer", None),
        ("lab/x", "hf_writer", None),
        ("x", "hf_writer", None),
        ("user/x", "hf_wrong", r"PermissionError: Cannot push to user/x: the Hub rejects the token \(401, "),
        ("user/x", "hf_reader", "PermissionError: .* the token of user is read-only; log in"),
        (
            "other/x",
            "hf_writer",
            "PermissionError: .* the token belongs to user, who is not a member of other; log in",
        ),
        ("museum/x", "hf_writer", "PermissionError: .* user has read access only to museum; log in"),
    ],
)
def test_check_hub_access(hub, client, name, token, message):
    before = {**hub.repositories}
    if message is None:
        client(f'check_hub_access("{name}", "{token}")')
    else:
        with pytest.raises(ClientError, match=message):
            client(f'check_hub_access("{name}", "{token}")')
    assert hub.repositories == before


@pytest.mark.parametrize(
    ("private", "gated", "name", "keywords", "message"),
    [
        (
            True,
            False,
            "user/closed",
            'token="hf_wrong"',
            r"FileNotFoundError: .* or it is private; check the name, or log",
        ),
        (False, True, "user/closed", "", r"PermissionError: .* it is gated; request access on its page, then log in"),
        (
            False,
            False,
            "user/absent",
            "",
            r"FileNotFoundError: .*there is no such repository, or it is private; check",
        ),
        (
            False,
            False,
            "user/closed",
            'subfolder="best"',
            r"FileNotFoundError: .*a repository without best/config.json",
        ),
        (
            False,
            False,
            "user/closed",
            "local_files_only=True",
            r"FileNotFoundError: .* not in the cache, and local_file",
        ),
    ],
)
def test_failed_load_names_the_cause(hub, client, workdir, tmp_path, private, gated, name, keywords, message):
    hub.add_folder("user/closed", workdir / "run")
    hub.repositories["user/closed"].private, hub.repositories["user/closed"].gated = private, gated
    with pytest.raises(ClientError, match=message):
        client(f"Model.from_pretrained({name!r}, cache_dir={str(tmp_path)!r}, {keywords})")


def test_cache_is_used_if_the_server_hangs_up(hub, client, workdir, tmp_path):
    hub.add_folder("user/cached", workdir / "run")
    load = f'logits(Model.from_pretrained("user/cached", cache_dir={str(tmp_path)!r}'
    client(load + "))")
    (workdir / "out.safetensors").unlink()
    hub.faults = {"user/": 0}
    try:
        client(f"""
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    {load}))
result = [str(w.message) for w in caught if "in the cache" in str(w.message)]
assert result, caught
""")
        with pytest.raises(
            ClientError, match=r"ConnectionError: user/other: .* the Hub cannot be reached, or the transfer"
        ):
            client('Model.from_pretrained("user/other")')
        with pytest.raises(ClientError, match=r"ConnectionError: user/cached: .* the Hub cannot be reached"):
            client(load + ", force_download=True))")
    finally:
        hub.faults = {}
    assert logits_are_equal(workdir)


def test_only_the_files_of_the_checkpoint_are_downloaded(hub, client, workdir, tmp_path):
    (tmp_path / "many").mkdir()
    for name in ("best", "last"):
        shutil.copytree(workdir / "run", tmp_path / "many" / name)
    for name in ("dump.json", "best/optimizer.safetensors", "best/notes.txt"):
        (tmp_path / "many" / name).write_text("{}")
    hub.add_folder("user/many", tmp_path / "many")
    hub.requests.clear()
    client('logits(Model.from_pretrained("user/many", subfolder="best"))')
    assert logits_are_equal(workdir)
    read = {request.rpartition("/main/")[2] or request for request in hub.requests if "user/many" in request}
    assert not [name for name in read if "last/" in name or "dump" in name or "optimizer" in name or "notes" in name]
    client('DetrisProcessor.from_pretrained("user/many", subfolder="best")')


def test_push_without_a_manifest_removes_the_old_one_from_the_hub(hub, client, copy):
    """A checkpoint of an earlier version would not match it."""
    client('push_folder("run", "user/earlier")')
    (copy / "manifest.json").unlink()
    client(f'push_folder({str(copy)!r}, "user/earlier")')
    assert "manifest.json" not in hub.repositories["user/earlier"].at("main")[1]


def test_push_without_an_adapter_removes_the_old_one_from_the_hub(hub, client, workdir):
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
def test_invalid_repository_id(name, workdir):
    for push in (lambda: check_hub_access(name), lambda: push_folder(workdir / "run", name)):
        with pytest.raises(ValueError, match=rf"^expected a Hub repository id \(user/name\), got '{name}': \w"):
            push()


def test_an_unwritable_cache_is_named(monkeypatch):
    def fail(*args, **kwargs):
        raise PermissionError(13, "Permission denied", "/home/.cache")

    monkeypatch.setattr(hub_download, "snapshot_download", fail)
    with pytest.raises(OSError, match=r"user/x: .* the cache cannot be written \(.*/home/.cache.*\); .* set HF_HOME"):
        DetrisForReferringSegmentation.from_pretrained("user/x", force_download=True)


def test_offline_mode_raises(workdir):
    with pytest.raises(ConnectionError, match=r"HF_HUB_OFFLINE is set; unset it; the weights are saved in .*run;"):
        push_folder(workdir / "run", "user/detris", token="hf_writer")


def test_local_backbones_are_not_pushed(workdir, tmp_path):
    model = DetrisForReferringSegmentation.from_backbones(
        Dinov2WithRegistersModel.from_pretrained(workdir / "dino"),
        CLIPTextModelWithProjection.from_pretrained(workdir / "clip"),
        tiny_config(),
    )
    model.save_pretrained(tmp_path / "run")
    for push in (
        lambda: model.push_to_hub("user/detris"),
        lambda: push_folder(tmp_path / "run", "user/detris"),
        lambda: check_backbones_on_hub(model.config),
    ):
        match = r"expected a vision backbone on the Hub, got the local folder .*dino; upload it"
        with pytest.raises(ValueError, match=match):
            push()


def test_incomplete_checkpoint_is_not_pushed(copy):
    (copy / "head.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"head\.safetensors is missing from the checkpoint"):
        push_folder(copy, "user/detris")
    match = r"expected a folder written by save_pretrained, got one without config\.json"
    with pytest.raises(FileNotFoundError, match=match):
        push_folder(copy.parent, "user/detris")


def test_a_repository_without_a_processor_is_refused(hub, client, workdir):
    """transformers would silently use defaults, with which the model was not trained."""
    client('push_folder("run", "user/no_processor")')
    repository = hub.repositories["user/no_processor"]
    files = repository.at("main")[1]
    repository.commit("main", {name: files[name] for name in files if name != "processor_config.json"})
    with pytest.raises(ClientError, match=r"FileNotFoundError: user/no_processor: expected .*processor_config\.json"):
        client('DetrisProcessor.from_pretrained("user/no_processor")')
