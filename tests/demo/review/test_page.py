"""The page over HTTP: its answers, what it saves, and what it refuses."""

from __future__ import annotations

import base64
import json
from functools import cache
from io import BytesIO
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from tests.demo.review.conftest import BOX, read_lines

TRAIN = "train/metadata.jsonl"
CLIENT = httpx.Client(timeout=60)


@cache
def component_id(address):
    components = CLIENT.get(f"{address}config").json()["components"]
    return next(component["id"] for component in components if component["props"].get("elem_id") == "review")


def ask(address, name, request, headers=None):
    """Call a function of the page's component."""
    body = {"data": request, "component_id": component_id(address), "fn_name": name, "session_hash": "test"}
    response = CLIENT.post(f"{address}gradio_api/component_server", json=body, headers=headers)
    response.raise_for_status()
    return response.json()


def show(address, **request):
    return ask(address, "show", request)


def save(address, shown, sentences, bad_mask=False, **changes):
    request = {name: shown[name] for name in ("file", "number", "version")}
    return ask(address, "save", {**request, "sentences": sentences, "bad_mask": bad_mask, **changes})


def test_objects_are_shown_in_order_and_by_split(server):
    answer = show(server)
    shown = answer["object"]
    assert answer["splits"] == ["train", "val"]
    assert (shown["position"], shown["count"], shown["file"], shown["number"]) == (1, 6, TRAIN, 1)
    assert (shown["sentences"], shown["split"], shown["name"]) == (["train 0", "object 0 of train"], "train", "a.png")
    assert shown["category"] == "box"
    place = {"file": TRAIN, "number": 1}
    assert show(server, **place, step=2)["object"]["number"] == 3
    assert show(server, **place, step=4)["object"]["split"] == "val"
    assert show(server, **place, step=9)["object"]["position"] == 6
    assert show(server, **place, step=9)["message"] == "This is the last object."
    assert show(server, **place, step=-1)["message"] == "This is the first object."
    assert show(server, position=5, **place)["object"]["sentences"][0] == "val 0"
    assert show(server, position=100)["object"]["position"] == 6
    only = show(server, split="val", **place)["object"]
    assert (only["position"], only["count"], only["split"]) == (1, 2, "val")
    assert show(server, split="none")["message"] == "No object was found."


def test_an_edit_is_saved_and_the_next_one_is_based_on_it(server, folder):
    shown = show(server)["object"]
    before = read_lines(folder)
    answer = save(server, shown, [[0, "the <b>blue</b> box"], [None, "néw"], [1, None]])
    assert answer["indices"] == [0, 1, 2]
    assert read_lines(folder)[0]["sentences"] == ["the <b>blue</b> box", "néw", "object 0 of train"]
    answer = save(server, {**shown, **answer}, [[1, " "], [2, "x"]], bad_mask=True)
    assert answer["messages"].keys() == {"0"}
    assert "sentence 1 is not saved: expected sentences of non-blank text" in answer["messages"]["0"]
    after = read_lines(folder)
    assert after == [{**before[0], "sentences": ["néw", "x"], "bad_mask": True}, *before[1:]]
    assert read_lines(folder, "val")[0]["sentences"] == ["val 0", "object 0 of val"]


def test_only_flagged_objects_are_shown(server):
    assert show(server, flagged=True)["message"] == "No object is flagged."
    for position in (2, 4):
        shown = show(server, position=position)["object"]
        save(server, shown, [[0, None], [1, None]], bad_mask=True)
    shown = show(server, flagged=True)["object"]
    assert (shown["number"], shown["position"], shown["count"], shown["bad_mask"]) == (2, 1, 2, True)
    save(server, shown, [[0, None], [1, None]], bad_mask=False)
    # The object is no longer among those that are shown, but the steps start from its place.
    place = {"file": TRAIN, "number": 2, "flagged": True}
    assert show(server, **place, step=1)["object"]["number"] == 4
    assert show(server, **place, step=-1)["object"]["number"] == 4
    assert show(server, file=TRAIN, number=3, flagged=True, step=-1)["message"] == "This is the first object."


def test_the_last_sentence_cannot_be_deleted(server, folder):
    shown = show(server)["object"]
    assert "expected at least one sentence, got none; write another one, or flag" in save(server, shown, [])["error"]
    assert len(read_lines(folder)[0]["sentences"]) == 2


def test_two_servers_on_one_folder_do_not_overwrite_each_other(server, other_server, folder):
    mine, other = show(server)["object"], show(other_server)["object"]
    assert "error" not in save(other_server, other, [[0, "theirs"], [1, None]])
    answer = save(server, mine, [[0, "mine"], [1, None]])
    assert "metadata.jsonl line 1: changed by another reviewer" in answer["error"]
    assert answer["object"]["sentences"] == ["theirs", "object 0 of train"]
    assert read_lines(folder)[0]["sentences"] == ["theirs", "object 0 of train"]
    assert "error" not in save(server, answer["object"], [[0, "mine"], [1, None]])
    assert show(other_server)["object"]["sentences"][0] == "mine"


def test_the_image_has_its_mask_or_a_message(server):
    url = ask(server, "image", {"file": TRAIN, "number": 1, "mask": True})["url"]
    drawn = Image.open(BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))))
    assert drawn.size == (720, 480)
    inside, outside = drawn.getpixel((240, 240)), drawn.getpixel((600, 240))
    assert inside[2] > 180 > 110 > outside[2]  # the surround is dimmed
    url = ask(server, "image", {"file": TRAIN, "number": 1})["url"]
    plain = Image.open(BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))))
    assert plain.getpixel((600, 240))[2] > 180
    assert "missing.png is missing; add the image" in ask(server, "image", {"file": TRAIN, "number": 2})["error"]


def test_unreadable_sentences_are_shown_with_a_message(server, folder):
    file = folder / TRAIN
    bad = json.dumps({"file_name": "a.png", "sentences": 5, "mask": BOX})
    half = json.dumps({"file_name": "a\ud800.png", "sentences": ["b\ud800"], "mask": BOX})
    file.write_text("\n".join([bad, half, "no JSON"]))
    shown = show(server)["object"]
    assert shown["count"] == 4
    assert "expected a list of texts as 'sentences', got 5" in shown["error"]
    assert save(server, shown, [], bad_mask=True)["indices"] == []
    assert file.read_text().splitlines()[0] == bad[:-1] + ', "bad_mask": true}'
    assert show(server, position=2)["object"]["sentences"] == ["b?"]


@pytest.mark.parametrize(
    ("name", "request_", "message"),
    [
        ("show", {"position": "2"}, "position: expected an integer"),
        ("show", {"step": 1.5}, "step: expected an integer"),
        ("show", [1], "request: expected one of this page"),
        ("show", None, "request: expected one of this page"),
        ("image", {"file": "../../etc/passwd", "number": 1}, "line 1: expected a line of the dataset"),
        ("image", {"file": "/etc/passwd", "number": 1}, "expected a line of the dataset"),
        ("image", {"file": ["a"], "number": True}, "number: expected an integer"),
        ("save", {"file": "../x.jsonl", "number": 1, "sentences": []}, "file: expected one of train/metadata.jsonl"),
        ("save", {"file": TRAIN, "number": 1}, "sentences: expected pairs"),
        ("save", {"file": TRAIN, "number": 1, "sentences": [["a"]]}, "sentences: expected pairs"),
        ("save", {"file": TRAIN, "number": 1, "sentences": [[0, 5]]}, "sentences: expected pairs"),
        ("save", {"file": TRAIN, "number": 99, "sentences": []}, "line 99: expected a line of the dataset"),
        ("save", {"file": TRAIN, "number": 1, "version": None, "sentences": []}, "changed by another reviewer"),
    ],
)
def test_other_requests_give_a_message_and_change_nothing(server, folder, name, request_, message, capfd):
    before = [read_lines(folder, split) for split in ("train", "val")]
    answer = ask(server, name, request_)
    assert message in answer["error"]
    assert "\n" not in answer["error"]
    assert [read_lines(folder, split) for split in ("train", "val")] == before
    assert "Traceback" not in capfd.readouterr().err


def test_pages_of_other_sites_cannot_edit(server, folder):
    shown = show(server)["object"]
    request = {**shown, "sentences": [[0, "evil"]], "bad_mask": False}
    answer = ask(server, "save", request, {"origin": "http://evil.example"})
    assert "expected one of this page" in answer["error"]
    port = urlsplit(server).port
    # A name of the other site that leads to this machine.
    names = {"origin": f"http://evil.example:{port}", "host": f"evil.example:{port}"}
    assert "expected one of this page" in ask(server, "save", request, names)["error"]
    assert "error" in ask(server, "show", {}, {"host": "["})
    local = {"origin": f"http://localhost:{port}", "host": f"localhost:{port}"}
    assert "error" not in ask(server, "show", {}, local)
    assert "error" not in ask(server, "save", request, {"origin": server.rstrip("/")})


def test_the_name_of_the_host_option_may_lead_to_this_machine(server, other_server):
    """As Debian's 127.0.1.1 for the name of the machine."""
    names = {"origin": "http://my-machine:7860", "host": "my-machine:7860"}
    assert "error" not in ask(other_server, "show", {}, names)
    assert "expected one of this page" in ask(server, "show", {}, names)["error"]


def test_files_of_the_server_are_not_served(server, folder):
    for path in ("/etc/hostname", str(folder / "train" / "a.png"), str(folder / TRAIN)):
        assert CLIENT.get(f"{server}gradio_api/file={path}").status_code in (403, 404)
    for name in ("postprocess", "preprocess", "push_to_hub", "to_json", "folder"):
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            ask(server, name, {})
    config = CLIENT.get(f"{server}config").json()
    assert config["dependencies"] == []
    assert "my <b>set</b>" not in json.dumps(config["components"])


def test_a_file_that_cannot_be_written_gives_a_message(server, folder, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    shown = show(server)["object"]
    monkeypatch.setattr("detris_peft.data.tools.review.folder.write_metadata", fail)
    expected = f"{TRAIN}: cannot be written (No space left on device); free disk space, or allow writing."
    assert save(server, shown, [[0, "new"]])["error"] == expected
    assert read_lines(folder)[0]["sentences"][0] == "train 0"
