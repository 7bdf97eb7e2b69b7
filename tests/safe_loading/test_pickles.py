"""Pickles of plain values: nothing is executed, and small files cannot exhaust the machine."""

from __future__ import annotations

import pickle
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detris_peft.safe_loading import load_plain_pickle
from detris_peft.safe_loading.limits import MAX_DEPTH


@pytest.fixture
def load(tmp_path):
    """Write bytes to a file and load them."""

    def write_and_load(data: bytes):
        (tmp_path / "refs.p").write_bytes(data)
        return load_plain_pickle(tmp_path / "refs.p")

    return write_and_load


_LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text() | st.binary()
)
_KEYS = st.text() | st.integers(-1000, 1000) | st.booleans() | st.none()
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(_KEYS, inner) | st.sets(_KEYS),
    max_leaves=20,
)


@pytest.mark.parametrize("protocol", range(6))
@settings(max_examples=40, deadline=None)
@given(value=_VALUES)
def test_plain_values_are_read_as_by_pickle(tmp_path_factory, protocol, value):
    data = pickle.dumps(value, protocol)
    file = tmp_path_factory.getbasetemp() / "value.p"
    file.write_bytes(data)
    if b"_codecs" in data or b"builtin" in data:  # sets and bytes of old protocols are calls
        with pytest.raises(pickle.UnpicklingError, match="imports"):
            load_plain_pickle(file)
    else:
        assert load_plain_pickle(file) == value


def python_2_string(text: str, encoding: str) -> bytes:
    data = text.encode(encoding)
    return b"U" + bytes([len(data)]) + data


def test_each_string_of_python_2_is_decoded_by_itself(load):
    """One Latin-1 string must not garble the UTF-8 strings of the same file."""
    texts = [("café", "utf-8"), ("à gauche", "latin-1"), ("左", "utf-8")]
    assert load(b"](" + b"".join(python_2_string(*text) for text in texts) + b"e.") == [text for text, _ in texts]
    assert load(b"(lp0\nS'caf\\xc3\\xa9'\naS'\\xe0 gauche'\na.") == ["café", "à gauche"]


def test_line_ends_of_protocol_0_may_be_converted(load):
    value = [{"ref_id": 1, "sent": "left\nred", "split": "train", "box": [1.5, -2.0], "ids": (1, 2)}]
    assert load(pickle.dumps(value, 0).replace(b"\n", b"\r\n")) == value
    with pytest.raises(ValueError, match=r"refs.p: expected a pickle, got one whose line ends were converted to CRLF"):
        load(pickle.dumps([{"image_id": 10, "n": 266}] * 3, 2).replace(b"\n", b"\r\n"))


def nested_tuple(depth: int) -> bytes:
    return b"\x80\x02}" + b")" + b"\x85" * depth


EXPONENTIAL = b"\x80\x02]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)) + b"."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02r\xff\xff\xff\x7f.", "do not fit together"),
        (nested_tuple(75_000) + b"K\x01s.", "a key that is neither text nor an integer but tuple"),
        (b"\x80\x02}G" + struct.pack(">d", 2.0**61) + b"K\x01s.", "a key .* but float"),
        (pickle.dumps({2**61: 1}), "a key .* but int"),
        (nested_tuple(MAX_DEPTH + 1) + b".", f"nested more than {MAX_DEPTH} levels"),
        (b"]" * 100_000 + b"a" * 99_999 + b".", f"nested more than {MAX_DEPTH} levels"),
        (b"(" * 1_000_000 + b".", f"nested more than {MAX_DEPTH} levels"),
        (b"\x80\x04(" + b"\x8f" * 1_000_000 + b"t.", "more containers than a file of this size"),
        (b"]" + b"]a" * 1_000_000 + b".", "more containers than a file of this size"),
        (EXPONENTIAL, "shared too often"),
        (b"](V" + b"x" * 5000 + b"\nq\x00" + b"h\x00" * 5000 + b"e.", "shared too often"),
        (b"]q\x00h\x00a.", "nested more than"),
        (b"\x8b" + struct.pack("<I", 1000) + bytes(1000) + b".", "an integer of 1,000 bytes"),
        (b"L" + b"9" * 5000 + b"L\n.", "an integer of 5,000 digits"),
        (b"\x8d" + b"\xff" * 8 + b".", "truncated"),
        (b"\x8e" + struct.pack("<Q", 2**62) + b".", "truncated"),
        (b"g" + b"9" * 5000 + b"\n.", "a memo index"),
        (b"\x80\x02.", "do not fit together"),
        (b"(((.", "do not fit together"),
        (b"0000.", "do not fit together"),
        (b"K\x01K\x02s.", "do not fit together|outside a dict"),
        (b"](K\x01", "truncated"),
        (b"\xff", "unknown opcode 0xff at byte 0"),
        (b"", "truncated"),
    ],
)
def test_hostile_and_damaged_files_are_refused_in_one_line(load, data, message):
    with pytest.raises(ValueError, match=f"refs.p: expected a pickle, got unreadable data .*({message})") as caught:
        load(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'exit 3'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"(ios\nsystem\n.",
        b"(cos\nsystem\no.",
        b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        b"\x82\x01.",
        b"]}b.",
        b"])\x81.",
        b"])R.",
        b"Pfile\n.",
        b"K\x01Q.",
        b"c" + b"x" * 5000 + b"\n" + b"y" * 5000 + b"\n.",
        b"\x80\x04\x8c\x05o\n\r\x00s\x8c\x06sys\ntm\x93.",
    ],
)
def test_imports_and_calls_are_refused(load, data):
    with pytest.raises(
        pickle.UnpicklingError, match=r"refs.p: expected a pickle of plain containers, got one"
    ) as caught:
        load(data)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_shared_values_of_a_real_size_are_accepted(load):
    """Sharing in itself is fine: pickles of REFER share keys and split names."""
    shared = {"split": "train", "tokens": ["the", "left", "one"]}
    assert load(pickle.dumps([shared] * 1000)) == [shared] * 1000
