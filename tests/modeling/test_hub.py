"""To a Hub and back, over a loopback server that speaks just enough of its protocol."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_backbones import image_encoder, inputs, perturb, text_encoder, tiny_config
from transformers import CLIPTextModelWithProjection, Dinov2WithRegistersModel

from detris_peft import DetrisForReferringSegmentation

COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """One repository, `user/detris`, of one commit."""

    files: dict[str, bytes]
    requests: list[str]

    def log_message(self, *args):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.requests.append(path)
        if path.startswith("/user/detris/resolve/"):
            content = self.files.get(path.split("/", 5)[5])
            headers = {"ETag": f'"{hash(content):x}"', "X_Repo_Commit": COMMIT}
            self.answer(content or b"", 200 if content is not None else 404, **headers)
        elif path.startswith("/api/models/user/detris/tree"):
            self.answer([{"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in self.files.items()])
        elif path.startswith("/api/models/user/detris"):
            self.answer({"id": "user/detris", "sha": COMMIT, "siblings": [{"rfilename": p} for p in self.files]})
        else:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self):
        self.requests.append(self.path)
        home = f"http://{self.headers['Host']}/user/detris"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/api/models/user/detris/preupload"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        elif self.path.startswith("/api/models/user/detris/commit"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitOid": COMMIT, "commitUrl": f"{home}/commit/{COMMIT}", "hookOutput": ""})
        else:
            self.answer({"url": home, "warnings": [], "errors": []})


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("FreshHub", (Hub,), {"files": {}, "requests": []}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


SCRIPT = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection, Dinov2WithRegistersModel
from detris_peft import DetrisForReferringSegmentation
folder = sys.argv[1]
local = DetrisForReferringSegmentation.from_pretrained(folder + "/run")
local.config.vision_name_or_path, local.config.text_name_or_path = "user/dino", "user/clip"
local.save_pretrained(folder + "/again", push_to_hub=True, repo_id="user/detris", token="hf_x", private=True)
loaded = DetrisForReferringSegmentation.from_pretrained(
    "user/detris",
    vision_model=Dinov2WithRegistersModel.from_pretrained(folder + "/vision"),
    text_model=CLIPTextModelWithProjection.from_pretrained(folder + "/text"),
)
with torch.no_grad():
    logits = loaded(**load_file(folder + "/in.safetensors")).logits
save_file({"logits": logits.contiguous()}, folder + "/out.safetensors")
try:
    DetrisForReferringSegmentation.from_pretrained("user/none")
except FileNotFoundError as error:
    print(error)
"""


@pytest.fixture
def model(tmp_path):
    image_encoder().save_pretrained(tmp_path / "vision")
    text_encoder().save_pretrained(tmp_path / "text")
    model = DetrisForReferringSegmentation.from_backbones(
        Dinov2WithRegistersModel.from_pretrained(tmp_path / "vision"),
        CLIPTextModelWithProjection.from_pretrained(tmp_path / "text"),
        tiny_config(),
    )
    perturb(model)
    return model.eval()


def test_pushed_and_loaded_by_name(hub, model, tmp_path):
    """What is uploaded is the checkpoint and nothing else; what is downloaded is what the model needs."""
    model.save_pretrained(tmp_path / "run")
    batch = {k: v for k, v in inputs().items() if k != "labels"}
    save_file(batch, tmp_path / "in.safetensors")
    hub.RequestHandlerClass.files["optimizer.bin"] = b"not for loading"
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    uploaded = set(hub.RequestHandlerClass.files) - {"optimizer.bin", ".gitattributes"}
    saved = {str(f.relative_to(tmp_path / "again")) for f in Path(tmp_path / "again").rglob("*") if f.is_file()}
    assert uploaded == saved
    config = json.loads(hub.RequestHandlerClass.files["config.json"])
    assert config["vision_name_or_path"] == "user/dino"
    assert not [path for path in hub.RequestHandlerClass.requests if "optimizer.bin" in path]
    with torch.no_grad():
        assert torch.equal(load_file(tmp_path / "out.safetensors")["logits"], model(**batch).logits)
    assert done.stdout.startswith("There is no folder user/none, nor can it be had from the Hub: ")


def test_local_backbones_are_not_pushed_by_path(model):
    with pytest.raises(ValueError, match=r"vision backbone is the local folder .*vision, which nobody else has"):
        model.push_to_hub("user/detris")
