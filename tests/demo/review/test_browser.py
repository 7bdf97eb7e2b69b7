"""The page in Chromium: keys, saving while typing, two reviewers, and a server that is killed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest

from tests.demo.review.conftest import read_lines

pytestmark = pytest.mark.slow


@pytest.fixture
def browser():
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("no browser: install Chromium, on Debian with `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def open_page(browser, address, width=1280):
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.set_default_timeout(30_000)
    page.goto(address)
    page.wait_for_selector("#review textarea")
    page.wait_for_selector("#review img:not(.loading)")
    return page


@pytest.fixture
def page(browser, server):
    """The page of the first object. Fails if a script of it fails, or if it asks another server for anything."""
    requests, errors = [], []
    page = open_page(browser, server)
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    assert errors == []
    addresses = {urlsplit(url).netloc for url in requests if urlsplit(url).scheme not in ("data", "blob")}
    assert addresses <= {urlsplit(server).netloc}


def texts(page):
    return [area.input_value() for area in page.locator("#review textarea").all()]


def wait_for_object(page, position):
    page.wait_for_function(f"document.querySelector('[data-part=position]')?.value === '{position}'")


def wait_for_state(page, text):
    page.locator("[data-part=state]", has_text=re.compile(f"^{text}$")).wait_for()


def test_an_object_is_shown_with_its_image_sentences_position_and_keys(page):
    assert texts(page) == ["train 0", "object 0 of train"]
    assert page.input_value("[data-part=position]") == "1"
    assert page.inner_text("[data-part=count]") == "6"
    assert page.locator("#review img").evaluate("image => image.naturalWidth") == 720
    assert page.inner_text("figcaption") == "box · a.png · split train · train/metadata.jsonl line 1"
    assert page.locator("#review textarea").first.get_attribute("dir") == "auto"
    keys = page.inner_text(".keys")
    assert all(key in keys for key in ("PageDown", "PageUp", "Alt", "Enter", "Esc", "next", "previous"))
    assert "my <b>set</b>" in page.inner_text("#page-title")
    assert page.locator("footer:visible, a[href*='gradio.app']:visible").count() == 0


def test_keys_go_to_the_next_and_the_previous_object(page):
    page.locator("body").press("j")
    wait_for_object(page, 2)
    page.locator("[data-part=image-error]", has_text="missing.png is missing").wait_for()
    page.locator("body").press("PageDown")
    wait_for_object(page, 3)
    page.locator("textarea").first.press("PageDown")
    wait_for_object(page, 4)
    page.locator("textarea").first.press("Alt+ArrowRight")
    wait_for_object(page, 5)
    assert page.evaluate("document.activeElement.ariaLabel") == "Sentence 1"  # where the reviewer was
    page.keyboard.press("Escape")
    page.keyboard.press("k")
    wait_for_object(page, 4)
    page.locator("textarea").first.press("Alt+ArrowLeft")
    wait_for_object(page, 3)
    page.locator("textarea").first.press("PageUp")
    wait_for_object(page, 2)
    for _ in range(9):  # each key counts, also while an object is loaded
        page.keyboard.press("PageDown")
    wait_for_object(page, 6)
    page.locator("[data-part=state]", has_text="This is the last object.").wait_for()
    page.fill("[data-part=position]", "4")
    page.press("[data-part=position]", "Enter")
    wait_for_object(page, 4)
    page.reload()
    wait_for_object(page, 4)
    page.select_option("[data-part=split]", "val")
    page.wait_for_function("document.querySelector('[data-part=count]').textContent === '2'")
    assert texts(page) == ["val 0", "object 0 of val"]


def test_letters_in_a_sentence_are_typed(page, folder):
    page.locator("body").press("e")
    page.keyboard.press("End")
    page.keyboard.type(" jkfaem")
    wait_for_state(page, "Saved")
    assert read_lines(folder)[0]["sentences"] == ["train 0 jkfaem", "object 0 of train"]
    assert page.input_value("[data-part=position]") == "1"
    assert "bad_mask" not in read_lines(folder)[0]


def test_sentences_are_written_added_and_deleted_and_masks_flagged_with_keys(page, folder):
    page.locator("body").press("e")
    page.keyboard.press("Enter")
    page.keyboard.type("<img src=x onerror=alert(1)>")
    wait_for_state(page, "Saved")
    assert read_lines(folder)[0]["sentences"] == ["train 0", "<img src=x onerror=alert(1)>", "object 0 of train"]
    page.get_by_role("button", name="Delete sentence 1").click()
    wait_for_state(page, "Saved")
    assert read_lines(folder)[0]["sentences"] == ["<img src=x onerror=alert(1)>", "object 0 of train"]
    page.keyboard.press("Escape")
    page.keyboard.press("f")
    wait_for_state(page, "Saved")
    assert read_lines(folder)[0]["bad_mask"] is True
    page.keyboard.press("PageDown")
    wait_for_object(page, 2)
    page.keyboard.press("PageUp")
    wait_for_object(page, 1)
    assert texts(page) == ["<img src=x onerror=alert(1)>", "object 0 of train"]
    assert page.is_checked("[data-part=flag]")
    page.check("[data-part=flagged]")
    page.wait_for_function("document.querySelector('[data-part=count]').textContent === '1'")
    page.uncheck("[data-part=flag]")
    wait_for_state(page, "Saved")
    assert read_lines(folder)[0] == {**read_lines(folder)[0], "note": "train"}
    assert "bad_mask" not in read_lines(folder)[0]


def test_typing_just_before_the_next_object_is_saved(page, folder):
    page.keyboard.press("e")
    for _ in range(4):
        page.keyboard.type("!")
        page.keyboard.press("PageDown")
        page.keyboard.press("PageDown")
        page.keyboard.press("PageUp")
    wait_for_object(page, 5)
    assert [row["sentences"][0] for row in read_lines(folder)] == [f"train {index}!" for index in range(4)]


def test_letters_typed_while_an_object_is_loaded_are_meant_for_it(page, folder):
    """They are neither lost, nor typed into the object before it, nor taken for keys of the page."""
    page.route("**/component_server", lambda route: (time.sleep(0.3), route.continue_()))
    page.keyboard.type("je fmajk 1")
    page.keyboard.press("PageDown")
    page.keyboard.type(" fmajk 2")
    wait_for_object(page, 3)
    wait_for_state(page, "Saved")
    page.keyboard.press("Escape")
    page.keyboard.type("kf")
    wait_for_object(page, 2)
    wait_for_state(page, "Saved")
    found = [(row["sentences"][0], row.get("bad_mask")) for row in read_lines(folder)]
    assert found == [("train 0", None), ("train 1 fmajk 1", True), ("train 2 fmajk 2", None), ("train 3", None)]


def test_the_rest_of_a_sentence_that_another_reviewer_overtook_is_no_key(page, other_server, browser, folder):
    page.keyboard.press("e")
    other = open_page(browser, other_server)
    other.locator("textarea").first.fill("theirs")
    wait_for_state(other, "Saved")
    page.keyboard.type("jfm", delay=200)
    wait_for_state(page, "Not saved")
    assert texts(page) == ["theirs", "object 0 of train"]
    assert page.input_value("[data-part=position]") == "1"
    assert read_lines(folder)[0]["sentences"][0] == "theirs"
    assert "bad_mask" not in read_lines(folder)[0]


def test_blank_and_last_sentences_are_refused_with_a_message(page, folder):
    page.locator("textarea").first.fill(" ")
    wait_for_state(page, "Not everything is saved")
    assert "sentence 1 is not saved: expected sentences of non-blank text" in page.inner_text("[data-part=message]")
    assert read_lines(folder)[0]["sentences"] == ["train 0", "object 0 of train"]
    page.get_by_role("button", name="Delete sentence 1").click()
    wait_for_state(page, "Saved")
    page.get_by_role("button", name="Delete sentence 1").click()
    assert "The last sentence cannot be deleted: write another one first" in page.inner_text("[data-part=message]")
    assert read_lines(folder)[0]["sentences"] == ["object 0 of train"]


def test_two_tabs_on_two_servers_do_not_lose_edits(browser, page, server, other_server, folder):
    other = open_page(browser, other_server)
    other.locator("textarea").nth(1).fill("of the other reviewer")
    wait_for_state(other, "Saved")
    page.locator("textarea").first.fill("mine")
    wait_for_state(page, "Not saved")
    message = page.inner_text("[data-part=message]")
    assert "line 1: changed by another reviewer" in message
    assert "Not saved: mine" in message
    assert texts(page) == ["train 0", "of the other reviewer"]
    page.locator("textarea").first.fill("mine")
    wait_for_state(page, "Saved")
    assert read_lines(folder)[0]["sentences"] == ["mine", "of the other reviewer"]


def test_a_deletion_that_another_reviewer_overtook_is_not_reported_as_saved(page, server, folder):
    file = folder / "train" / "metadata.jsonl"
    file.write_text(file.read_text().replace("object 0 of train", "from an editor"))
    page.get_by_role("button", name="Delete sentence 1").click()
    wait_for_state(page, "Not saved")
    assert "changed by another reviewer" in page.inner_text("[data-part=message]")
    assert texts(page) == ["train 0", "from an editor"]


def test_a_save_that_fails_keeps_the_object_until_it_succeeds(page, folder, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr("detris_peft.data.tools.review.folder.write_metadata", fail)
        page.locator("textarea").first.fill("typed")
        wait_for_state(page, "Not saved")
        page.keyboard.press("PageDown")
        page.wait_for_timeout(500)
        assert "No space left on device" in page.inner_text("[data-part=message]")
        assert page.input_value("[data-part=position]") == "1"
    page.keyboard.press("PageDown")
    wait_for_object(page, 2)
    assert read_lines(folder)[0]["sentences"][0] == "typed"


def test_a_narrow_screen_needs_no_scrolling_to_the_side(browser, server):
    page = open_page(browser, server, width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("#review textarea").first.bounding_box()["width"] > 150


def start_server(folder, port):
    command = [sys.executable, "-m", "detris_peft", "data", "review", "--dataset", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    match = re.search(r"Serving 6 objects of .* on (http://127\.0\.0\.1:(\d+)/)", process.stdout.readline())
    assert match
    return process, match[1], int(match[2])


def test_a_killed_server_loses_at_most_the_last_keystroke_and_the_page_continues(browser, folder):
    process, address, port = start_server(folder, 0)
    try:
        page = open_page(browser, address)
        area = page.locator("textarea").first
        area.fill("the blue box")
        wait_for_state(page, "Saved")
        page.keyboard.type("e")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert read_lines(folder)[0]["sentences"][0] in ("the blue box", "the blue boxe")
        page.keyboard.type("s")
        page.locator("[data-part=state]", has_text="The server does not answer").wait_for()
        process, _, _ = start_server(folder, port)
        wait_for_state(page, "Saved")
        assert read_lines(folder)[0]["sentences"][0] == "the blue boxes"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    finally:
        process.kill()
