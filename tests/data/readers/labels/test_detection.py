"""Every fixture of a format is detected by its own reader alone."""

import pytest

from detris_peft.data import DataSource
from detris_peft.data.readers import find_reader, registered_readers
from detris_peft.data.readers.labels import files, via_files
from tests.helpers.reference import FIXTURES

FORMATS = sorted(path.name for path in (FIXTURES / "labels").iterdir())


@pytest.mark.parametrize("name", FORMATS)
def test_one_reader_detects_the_format(name):
    source = DataSource(str(FIXTURES / "labels" / name))
    found = [reader.name for reader in registered_readers() if reader.detect(source) and not reader.generic]
    assert found == [name]
    assert find_reader(source).name == name


def test_of_many_files_only_some_are_opened(tmp_path, monkeypatch):
    """A folder may hold one JSON or XML file per image, each with the pixels of the image."""
    for number in range(100):
        (tmp_path / f"{number}.json").write_text("{}")
        (tmp_path / f"{number}.xml").write_text("<a/>")
    opened, read = set(), files.head_text
    for module in (files, via_files):
        monkeypatch.setattr(module, "head_text", lambda file, size: opened.add(file) or read(file, size))
    assert find_reader(DataSource(str(tmp_path))).generic
    assert 0 < len(opened) <= 2 * files.MAX_DETECTED
