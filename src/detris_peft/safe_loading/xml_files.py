"""XML files: no DTD and no entities, bounded depth and size, in any encoding that XML declares."""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path
from typing import IO, Any, NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ..errors import one_line
from .limits import MAX_DEPTH, MAX_XML_BYTES, MAX_XML_NODES

_CHUNK = 1 << 20  # bytes
_HEAD = 200  # bytes that hold the XML declaration
_DECLARATION = re.compile(rb"""<\?xml[^>]*?encoding\s*=\s*["']([\w.-]+)["']""")
# Encodings of several bytes per character that expat does not know, by their names in Python.
_MULTI_BYTE = (
    *("big5", "big5hkscs", "cp932", "cp949", "cp950", "euc_jis_2004", "euc_jp", "euc_kr", "gb18030", "gb2312", "gbk"),
    *("hz", "iso2022_jp", "iso2022_kr", "johab", "shift_jis", "shift_jis_2004"),
)


def read_xml(file: str | os.PathLike) -> Element:
    """Read an XML file.

    Returns:
        The root element. Names keep their namespace prefixes; comments are left out.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not XML, has a DTD, or is larger or nested more deeply than the limits.
    """
    path = Path(file)
    try:
        with open(path, "rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            if size > MAX_XML_BYTES:
                raise ValueError(f"expected at most {MAX_XML_BYTES:,} bytes of XML, got {size:,}; export it in parts")
            return _Reader().read(opened)
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: expected an XML file, found no such file; check the path.") from None
    except IsADirectoryError:
        raise ValueError(f"{file}: expected an XML file, got a folder; pass a file.") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: expected XML in the encoding that it declares, got a byte that {error.encoding} does not allow; "
            "save it as UTF-8."
        ) from None
    except LookupError as error:
        raise ValueError(
            f"{file}: expected XML in a known encoding, got {one_line(error)}; save it as UTF-8."
        ) from None
    except expat.ExpatError as error:
        hint = "save it as UTF-8, or export it again" if "invalid token" in str(error) else "export it again"
        raise ValueError(f"{file}: expected XML, got an error: {one_line(error)}; {hint}.") from None
    except ValueError as error:
        raise ValueError(f"{file}: {one_line(error)}.") from None


class _Reader:
    """Builds the tree of one file from the events of the parser, which pass no entities."""

    def __init__(self) -> None:
        self._tree = TreeBuilder()
        self._depth = 0
        self._nodes = 0

    def read(self, opened: IO[bytes]) -> Element:
        head = opened.read(_HEAD)
        declared = _DECLARATION.match(head)
        name = codecs.lookup(declared[1].decode("ascii", "replace")).name if declared else ""
        decoder = codecs.getincrementaldecoder(name)() if name in _MULTI_BYTE else None
        parser = expat.ParserCreate(encoding="utf-8" if decoder else None)
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._tree.data
        parser.StartDoctypeDeclHandler = _refuse_dtd
        parser.EntityDeclHandler = _refuse_dtd
        chunk = head
        while chunk:
            parser.Parse(decoder.decode(chunk).encode() if decoder else chunk, False)
            chunk = opened.read(_CHUNK)
        parser.Parse(decoder.decode(b"", True).encode() if decoder else b"", True)
        return self._tree.close()

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._nodes += 1 + len(attributes)
        if self._depth > MAX_DEPTH:
            raise ValueError(f"expected XML of at most {MAX_DEPTH} levels, got deeper ones; export it again")
        if self._nodes > MAX_XML_NODES:
            raise ValueError(
                f"expected XML of at most {MAX_XML_NODES:,} elements and attributes, got more; export it in parts"
            )
        self._tree.start(name, attributes)

    def _end(self, name: str) -> None:
        self._depth -= 1
        self._tree.end(name)


def _refuse_dtd(*_: Any) -> NoReturn:
    raise ValueError(
        "expected XML without a DTD, got a <!DOCTYPE or <!ENTITY, which could expand without limit; remove it"
    )
