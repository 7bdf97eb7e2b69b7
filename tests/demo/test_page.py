"""The page over HTTP: its answers, what it refuses, and what it does not do."""

from __future__ import annotations

import http.server
import json
import os
import threading
from io import BytesIO

import httpx
import numpy as np
import pytest
from PIL import Image

from detris_peft.demo.environment import gradio_environment
from detris_peft.demo.limits import DemoLimits
from detris_peft.demo.page import build_page
from detris_peft.demo.page_models import PageModel
from detris_peft.demo.server import start_page
from tests.demo.client import META, call, download, upload

TEXT = "the red circle\nthe blue square"


@pytest.fixture(scope="module")
def server(predictor, photo):
    """The address of a page with two models and one example."""
    limits = DemoLimits(max_megapixels=1, max_sentences=3, max_characters=40, max_upload_mb=1)
    with gradio_environment():
        page = build_page([PageModel(title, predictor) for title in ("a/best", "b/best")], [(photo, "x\ny")], limits)
        yield start_page(page, port=0, limits=limits)
        page.close(verbose=False)


def test_masks_scores_and_downloads_are_those_of_the_predictor(server, predictor, photo):
    event, data = call(server, "segment", upload(server, photo), TEXT, 0.4)
    assert event == "complete"
    gallery, masks, records = data
    expected = predictor(photo, TEXT.split("\n"), threshold=0.4)
    captions = [f"{p.text} · {'no target' if p.no_target else f'score {p.score:.2f}'}" for p in expected]
    assert [item["caption"] for item in gallery] == captions
    assert json.loads(download(server, records)) == [p.to_json("photo.png") for p in expected]
    assert download(server, masks)[:2] == b"PK"
    shown = Image.open(BytesIO(download(server, gallery[0]["image"])))
    assert shown.size == (480, 320)
    event, data = call(server, "segment", upload(server, photo), TEXT.split("\n")[0], 0.4)
    mask = np.asarray(Image.open(BytesIO(download(server, data[1]))))
    assert np.array_equal(mask > 0, expected[0].mask)


def test_two_checkpoints_are_compared_in_pairs(server, photo):
    event, (agreement, gallery) = call(server, "compare", upload(server, photo), TEXT, 0.4)
    assert event == "complete"
    assert [item["caption"].split(" · ")[0] for item in gallery] == [
        f"{title}: {text}" for text in TEXT.split("\n") for title in ("a/best", "b/best")
    ]
    assert agreement.endswith("1.00, 1.00")


def refused(server, *inputs, function="segment"):
    """Return the message of an error."""
    event, data = call(server, function, *inputs)
    assert event == "error"
    assert "\n" not in data["error"]
    assert "Traceback" not in data["error"]
    return data["error"]


def test_an_upload_that_is_no_image_gives_a_message(server, photo, tmp_path, capfd):
    (tmp_path / "<b>text.png").write_text("not an image")
    message = refused(server, upload(server, tmp_path / "<b>text.png"), TEXT, 0.4, function="compare")
    assert "text.png: expected an image, got a file that cannot be decoded" in message
    assert "<" not in message
    Image.open(photo).resize((300, 300)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:3000])
    assert "cut.jpg: expected an image" in refused(server, upload(server, tmp_path / "cut.jpg"), TEXT, 0.4)
    (tmp_path / "x.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    assert "x.svg: expected an image" in refused(server, upload(server, tmp_path / "x.svg"), TEXT, 0.4)
    Image.new("1", (19_000, 10_000)).save(tmp_path / "bomb.png")
    assert "bomb.png: expected an image of at most" in refused(server, upload(server, tmp_path / "bomb.png"), TEXT, 0)
    assert "Traceback" not in capfd.readouterr().err


def test_incomplete_and_large_requests_give_a_message(server, photo):
    image = upload(server, photo)
    assert refused(server, None, TEXT, 0.4) == "Image: expected an image, got none; upload one."
    assert "at least one sentence" in refused(server, image, " \n ", 0.4)
    assert "at least one sentence" in refused(server, image, None, 0.4)
    assert "at most 3, got 4 lines" in refused(server, image, "a\nb\nc\nd", 0.4)
    assert refused(server, image, TEXT, 1)
    large = {"files": ("a.png", b"x" * 1_200_000)}
    assert httpx.post(f"{server}gradio_api/upload", files=large).status_code == 413
    body = {"data": [image, "a" * 200_000, 0.4]}
    assert httpx.post(f"{server}gradio_api/call/segment", json=body).status_code == 413


def test_urls_and_files_of_the_server_are_refused(server, photo, tmp_path):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{other.server_port}/a.png"
        for value in (
            {"path": url, "meta": META},
            {"path": "http://example.com/a.png", "meta": META},
            {"path": None, "url": url, "meta": META},
            {"path": upload(server, photo)["path"], "url": url, "meta": META, "orig_name": "../../a.png"},
        ):
            event, data = call(server, "segment", value, TEXT, 0.4)
            assert event == ("complete" if value.get("orig_name") else "error"), data
            for inputs in ((None, value, 0.4), (None, TEXT, value)):  # of other components
                assert call(server, "segment", *inputs)[0] == "error"
        other.shutdown()
    assert asked == []
    for path in ("/etc/hostname", os.path.abspath(__file__), str(photo)):
        assert call(server, "segment", {"path": path, "meta": META}, TEXT, 0.4)[0] == "error"
        assert httpx.get(f"{server}gradio_api/file={path}").status_code in (403, 404)


@pytest.mark.parametrize("threshold", ["0.4", None, [0.4], 1, -0.1, 10**400])
def test_thresholds_of_other_types_and_ranges_give_a_message(server, photo, threshold, capfd):
    assert refused(server, upload(server, photo), TEXT, threshold)
    assert "Traceback" not in capfd.readouterr().err


def test_other_inputs_give_a_message_and_no_traceback(server, photo, tmp_path, capfd):
    image = upload(server, photo)
    for inputs in ((5, TEXT, 0.4), ([image], TEXT, 0.4), ({**image, "path": 5}, TEXT, 0.4), (image, ["a"], 0.4), ()):
        assert "Inputs: expected those of the page" in refused(server, *inputs)
    assert "Example: expected 0 to 0, got 99" in refused(server, 99, function="choose")
    folder = os.path.dirname(image["path"])
    for path in (folder, f"{folder}/missing.png"):
        assert "got one that the server has removed" in refused(server, {**image, "path": path}, TEXT, 0.4)
    assert "Traceback" not in capfd.readouterr().err


def test_a_full_disk_gives_a_message(server, photo, monkeypatch, capfd):
    def fail(*_, **__):
        raise OSError(28, "No space left on device", "/secret/path")

    image = upload(server, photo)
    for function in ("gradio.processing_utils.save_pil_to_cache", "detris_peft.demo.page.save_bytes_to_cache"):
        with monkeypatch.context() as context:
            context.setattr(function, fail)
            assert refused(server, image, TEXT, 0.4) == "The disk of the server is full; try again later."
    printed = capfd.readouterr().err
    assert "No space left" in printed
    assert "Traceback" not in printed
    assert call(server, "segment", image, TEXT, 0.4)[0] == "complete"


def test_the_queue_cannot_be_passed_by(server, photo):
    body = {"data": [upload(server, photo), TEXT, 0.4]}
    assert httpx.post(f"{server}gradio_api/run/segment", json=body).status_code >= 400
    config = httpx.get(f"{server}config").json()
    assert config["analytics_enabled"] is False
    visible = [function["api_name"] for function in config["dependencies"] if function["api_visibility"] == "public"]
    assert visible == ["segment", "compare"]


def test_importing_and_serving_leaves_no_files(server):
    import detris_peft.demo as package

    folder = os.path.dirname(package.__file__)
    assert not [name for name in os.listdir(folder) if name.endswith(".pyi")]
    assert not [name for name in os.listdir() if name in (".gradio", "gradio_cached_examples", "flagged")]
