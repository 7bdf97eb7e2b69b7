"""Every fixture of a format is detected by its own reader alone."""

import pytest

from detris_peft.data import DataSource
from detris_peft.data.readers import find_reader, registered_readers
from tests.helpers.reference import FIXTURES

FORMATS = sorted(path.name for path in (FIXTURES / "labels").iterdir())


@pytest.mark.parametrize("name", FORMATS)
def test_one_reader_detects_the_format(name):
    source = DataSource(str(FIXTURES / "labels" / name))
    found = [reader.name for reader in registered_readers() if reader.detect(source) and not reader.generic]
    assert found == [name]
    assert find_reader(source).name == name
