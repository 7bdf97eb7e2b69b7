"""XML files: no DTD, bounds on depth and size, all declared encodings."""

from __future__ import annotations

import pytest

from detris_peft.safe_loading import limits, read_xml, xml_files
from detris_peft.safe_loading.limits import MAX_DEPTH


@pytest.fixture
def read(tmp_path):
    """Write a file and read it."""

    def write_and_read(content: str | bytes):
        file = tmp_path / "a.xml"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_xml(file)

    return write_and_read


def test_elements_attributes_and_texts_are_read(read):
    root = read('<a x="1"><!-- no --><b>left &amp; right &#x5de6;</b><b/><ns:c/>tail</a>')
    assert (root.tag, root.attrib, [child.tag for child in root]) == ("a", {"x": "1"}, ["b", "b", "ns:c"])
    assert root.findtext("b") == "left & right 左"
    assert root[2].tail == "tail"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "é左"),
        ("utf-16", "é左"),
        ("iso-8859-1", "é"),
        ("windows-1252", "é€"),
        ("koi8-r", "лес"),
        ("gb18030", "左"),
        ("gbk", "左"),
        ("shift_jis", "左"),
        ("euc-kr", "왼쪽"),
    ],
)
def test_the_declared_encoding_is_used(read, encoding, text, monkeypatch):
    monkeypatch.setattr(xml_files, "_CHUNK", 7)  # divides characters of several bytes
    content = f"<?xml version='1.0' encoding='{encoding}'?><a b='{text}'>{text * 300}</a>"
    root = read(content.encode(encoding))
    assert root.get("b") == text
    assert root.text == text * 300


def test_utf8_with_a_byte_order_mark_is_read(read):
    assert read("\ufeff<a>é</a>").text == "é"


BOMB = "<!DOCTYPE a [<!ENTITY b 'xx'><!ENTITY c '&b;&b;&b;'>]><a>&c;</a>"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "XML without a DTD"),
        ("<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>", "XML without a DTD"),
        ("<a>&b;</a>", "undefined entity"),
        ("<a>" * (MAX_DEPTH + 1), f"at most {MAX_DEPTH} levels"),
        ("<a><b></a>", "mismatched tag"),
        ("<a x='1' x='2'/>", "duplicate attribute"),
        ("", "no element found"),
        ("{}", "not well-formed"),
        (b"\x00\x01", "not well-formed"),
        ("<a>é</a>".encode("cp1252"), "save it as UTF-8"),
        (b"<?xml version='1.0' encoding='gbk'?><a>" + b"\xff\xff</a>", "a byte that gbk does not allow"),
        (b"<?xml version='1.0' encoding='gbk'?><a>" + b"\xd7", "a byte that gbk does not allow"),
        ("<?xml version='1.0' encoding='klingon'?><a/>", "unknown encoding: klingon"),
        ("<?xml version='1.0' encoding='zip'?><a/>", "not a text encoding"),
    ],
)
def test_hostile_and_damaged_files_are_refused_in_one_line(read, content, message):
    with pytest.raises(ValueError, match=r"a\.xml: expected XML") as caught:
        read(content)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_sizes_are_bounded(read, monkeypatch):
    assert limits.MAX_XML_NODES * 100 <= 1_000_000_000  # bytes of memory
    monkeypatch.setattr(xml_files, "MAX_XML_NODES", 10)
    assert len(read("<a>" + "<b x='1'/>" * 4 + "</a>")) == 4
    with pytest.raises(ValueError, match="at most 10 elements and attributes, got more; export it in parts"):
        read("<a>" + "<b x='1'/>" * 5 + "</a>")
    monkeypatch.setattr(xml_files, "MAX_XML_BYTES", 10)
    with pytest.raises(ValueError, match="at most 10 bytes of XML, got 11; export it in parts"):
        read("<a>1234</a>")


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone: expected an XML file, found no such file"):
        read_xml(tmp_path / "gone")
    with pytest.raises(ValueError, match="expected an XML file, got a folder"):
        read_xml(tmp_path)
