"""The page in Chromium, and with many clients at once."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from pycocotools import mask as mask_utils

from detris_peft.demo.environment import gradio_environment
from detris_peft.demo.limits import DemoLimits
from detris_peft.demo.page import build_page
from detris_peft.demo.page_models import PageModel
from detris_peft.demo.server import start_page
from tests.demo.client import call, download, upload
from tests.demo.conftest import write_photo

pytestmark = pytest.mark.slow
CLIENTS = 50


@pytest.fixture(scope="module")
def server(predictor, photo):
    """The address of a page with two models, whose queue has place for all clients."""
    limits = DemoLimits(max_queue=CLIENTS)
    with gradio_environment():
        models = [PageModel(title, predictor, cache_bytes=500_000) for title in ("a/best", "b/best")]
        page = build_page(models, [(photo, "the left circle\nthe square")], limits)
        yield start_page(page, port=0, limits=limits)
        page.close(verbose=False)


@pytest.fixture
def page(server):
    """The page in a browser. Fails if it asks another server for anything."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("no browser: install Chromium, on Debian with `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(60_000)
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(server)
        page.wait_for_selector("#segment")
        yield page
        browser.close()
    addresses = {urlsplit(url).netloc for url in requests if urlsplit(url).scheme not in ("data", "blob")}
    assert addresses == {urlsplit(server).netloc}


def captions(page, gallery):
    page.wait_for_selector(f"{gallery} img")
    return [text.split(" · ")[0] for text in page.locator(f"{gallery} .caption-label").all_inner_texts()]


def test_sentences_give_masks_and_downloads(page, photo, predictor, tmp_path):
    page.set_input_files("#image input[type=file]", photo)
    page.wait_for_selector("#image img")
    page.fill("#sentences textarea", "the red circle\nthe blue square")
    page.click("#segment")
    assert captions(page, "#masks") == ["the red circle", "the blue square"]
    assert page.locator("#masks img").first.evaluate("image => image.naturalWidth") == 480
    with page.expect_download() as downloaded:
        page.click("#download-json")
    downloaded.value.save_as(tmp_path / "a.json")
    records = json.loads((tmp_path / "a.json").read_text())
    assert records == [p.to_json("photo.png") for p in predictor(photo, ["the red circle", "the blue square"])]
    with page.expect_download() as downloaded:
        page.click("#download-masks")
    assert downloaded.value.suggested_filename == "masks.zip"
    assert page.locator("footer:visible, a[href*='gradio.app']:visible").count() == 0


def test_an_example_fills_in_image_and_sentences_and_both_checkpoints_are_compared(page):
    page.click("#examples button >> nth=0")
    page.wait_for_selector("#image img")
    assert page.input_value("#sentences textarea") == "the left circle\nthe square"
    page.get_by_role("tab", name="Compare checkpoints").click()
    page.click("#compare")
    names = [f"{title}: {text}" for text in ("the left circle", "the square") for title in ("a/best", "b/best")]
    assert captions(page, "#compared") == names
    assert "1.00, 1.00" in page.inner_text("#agreement")


def test_an_upload_that_is_no_image_gives_a_message(page, tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    page.set_input_files("#image input[type=file]", tmp_path / "text.png")
    page.wait_for_selector("#image img", state="attached")
    page.fill("#sentences textarea", "the red circle")
    page.click("#segment")
    message = page.locator(".toast-body").inner_text()
    assert "text.png: expected an image, got a file that cannot be decoded" in message
    assert "Traceback" not in message
    assert page.locator("#masks img").count() == 0


def test_a_missing_sentence_gives_a_message(page, photo):
    page.set_input_files("#image input[type=file]", photo)
    page.wait_for_selector("#image img")
    page.click("#segment")
    assert "expected at least one sentence" in page.locator(".toast-body").inner_text()


def test_many_clients_at_once_get_their_own_answers_in_bounded_memory(server, predictor, tmp_path):
    texts = [f"the {color} {shape}" for color in ("red", "blue", "green", "white", "gray") for shape in "abcdefghij"]
    files = [write_photo(tmp_path / f"{i}.png", i) for i in range(CLIENTS)]
    # A threshold at which the masks of an untrained model are neither empty nor full.
    threshold = round(float(np.median(predictor(files[0], texts[0], return_probabilities=True).probabilities)), 2)

    def ask(i):
        event, data = call(server, "segment", upload(server, files[i]), texts[i], threshold)
        assert event == "complete", data
        return json.loads(download(server, data[2]))

    process, memory = psutil.Process(), []
    with ThreadPoolExecutor(CLIENTS) as clients:
        for _ in range(2):
            answers = [*clients.map(ask, range(CLIENTS))]
            memory.append(process.memory_info().rss)
    shares = []
    for i, (record,) in enumerate(answers):
        expected = predictor(files[i], texts[i], threshold=threshold)
        assert (record["image"], record["text"]) == (f"{i}.png", texts[i])
        assert record["segmentation"]["size"] == [60, 90 + i]
        assert record["score"] == pytest.approx(expected.score, abs=1e-4)
        assert np.mean(mask_utils.decode(record["segmentation"]) == expected.mask) > 0.999
        shares.append(expected.mask.mean())
    assert 0.02 < np.mean(shares) < 0.98
    print(f"memory of server and clients in MB, after each round: {[round(rss / 1e6) for rss in memory]}")
    assert memory[1] - memory[0] < 200e6  # measured: 94 MB with the client's threads in the same process
