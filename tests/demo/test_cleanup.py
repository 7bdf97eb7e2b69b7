"""Files of visitors are removed, with their folders; examples and new files stay."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import gradio as gr
import pytest

from detris_peft.demo import cleanup


@pytest.fixture
def page(tmp_path):
    """A page with an example and other files, some of them in one folder or already removed."""
    names = ["upload/a.png", "example/b.png", "both/c.png", "both/d.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    upload, example, first, second = (str(tmp_path / name) for name in names)
    with gr.Blocks(analytics_enabled=False) as page:
        image = gr.Image()
    image.keep_in_cache.add(example)
    page.temp_file_sets[:] = [{upload, example, str(tmp_path / "missing")}, {first, second, upload}]
    return page


def remaining(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_new_files_stay(page, tmp_path):
    before = remaining(tmp_path)
    cleanup.remove_files(page, age=3600)
    assert remaining(tmp_path) == before


def test_old_files_are_removed_with_their_folders(page, tmp_path, monkeypatch):
    now = cleanup.time.time()
    monkeypatch.setattr(cleanup.time, "time", lambda: now + 7200)
    cleanup.remove_files(page, age=3600)
    assert remaining(tmp_path) == ["example", "example/b.png"]
    assert page.temp_file_sets == [{str(tmp_path / "example/b.png")}, set()]


def test_all_files_are_removed_when_the_server_stops(page, tmp_path):
    async def run():
        async with cleanup.old_files_removed(SimpleNamespace(get_blocks=lambda: page)):
            assert len(remaining(tmp_path)) == 7

    asyncio.run(run())
    assert remaining(tmp_path) == ["example", "example/b.png"]
