"""JSON and YAML files: bounds on depth and size, unique keys, UTF-8."""

from __future__ import annotations

import pytest

from detris_peft.safe_loading import read_json, read_yaml
from detris_peft.safe_loading.limits import MAX_DEPTH, MAX_NUMBER_CHARACTERS, MAX_YAML_CHARACTERS


@pytest.fixture
def read(tmp_path):
    """Write a file and read it with the reader for its suffix."""

    def write_and_read(name: str, content: str | bytes):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return (read_json if name.endswith("json") else read_yaml)(file)

    return write_and_read


def test_values_and_byte_order_marks_are_read(read):
    assert read("a.json", b"\xef\xbb\xbf" + '{"é": [1, 2.5, null, "左"]}'.encode()) == {"é": [1, 2.5, None, "左"]}
    text = "a: &base {x: 1}\nb: {<<: *base, y: [1, 2.5, yes, null]}\n2024-05-06: é\n1: 2\n"
    content = read("a.yaml", b"\xef\xbb\xbf" + text.encode())
    assert content["b"] == {"x": 1, "y": [1, 2.5, True, None]}
    assert content[1] == 2
    assert read("empty.yaml", "# nothing\n") is None
    assert read("large.json", str([2**63 - 1] * 2000 + [10**30])) == [2**63 - 1] * 2000 + [10**30]
    assert read("deep.json", "[" * MAX_DEPTH + "]" * MAX_DEPTH)


BOMB = "\n".join(["a0: &a0 [1, 1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 14))])
MERGE_BOMB = "\n".join(
    ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 14))]
)
TEXT_BOMB = f"a: &a {'x' * 50_000}\nb: [{', '.join(['*a'] * 1000)}]"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[" * 100_000, "got values nested too deeply"),
        ("a.json", "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "got values nested too deeply"),
        ("a.json", '{"a":' * 900 + "1" + "}" * 900, "got values nested too deeply"),
        ("a.json", '{"a": 1, "a": 2}', "the key 'a' twice"),
        ("a.json", "1" * 5000, "an integer of more than 4,300 digits"),
        ("a.json", str([k * (2**61 - 1) for k in range(2000)]), "more than 1,000 integers of more than 64 bits"),
        ("a.json", '{"a": 1', "Expecting ',' delimiter"),
        ("a.json", "", "Expecting value"),
        ("a.json", '{"a": 1}'.encode("utf-16"), "got another encoding"),
        ("a.yaml", "a: 1".encode("utf-16"), "got another encoding"),
        ("a.yaml", BOMB, "after expanding aliases"),
        ("a.yaml", MERGE_BOMB, "after expanding aliases"),
        ("a.yaml", TEXT_BOMB, "after expanding aliases"),
        ("a.yaml", "a: &a [*a]", "after expanding aliases"),
        ("a.yaml", "[" * 5000, "nested too deeply"),
        ("a.yaml", "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "after expanding aliases"),
        ("a.yaml", "a: " + "1:" * MAX_NUMBER_CHARACTERS + "1", "numbers and dates of at most"),
        ("a.yaml", "# " + "x" * MAX_YAML_CHARACTERS, "characters of YAML"),
        ("a.yaml", "a: 1\nb: 2\na: 3", "expected every key once, got 'a' again in line 3"),
        ("a.yaml", "a: {b: 1, b: 1}", "expected every key once, got 'b'"),
        ("a.yaml", "a: 2024-13-45", "month must be in"),
        ("a.yaml", "!!timestamp x", "a value that its type does not allow"),
        ("a.yaml", "!!bool x", "a value that its type does not allow"),
        ("a.yaml", "!!int ''", "a value that its type does not allow"),
        ("a.yaml", "!!python/object/apply:os.system [exit]", "could not determine a constructor"),
        ("a.yaml", "? [a]\n: 1", "found unhashable key"),
        ("a.yaml", "a: [1", "expected ',' or ']'"),
        ("a.yaml", "a: \x00", "special characters are not allowed"),
    ],
)
def test_hostile_and_damaged_files_are_refused_in_one_line(read, name, content, message):
    with pytest.raises(ValueError, match=f"{name}: expected ") as caught:
        read(name, content)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_missing_files_and_folders_are_named(tmp_path):
    for reader, kind in ((read_json, "JSON"), (read_yaml, "YAML")):
        with pytest.raises(FileNotFoundError, match=f"gone: expected a {kind} file, found no such file"):
            reader(tmp_path / "gone")
        with pytest.raises(ValueError, match=f"expected a {kind} file, got a folder"):
            reader(tmp_path)
