"""Interpreter of pickle opcodes: nothing is imported or called, unlike in `pickle.load`.

`pickle.Unpickler` with a restricted `find_class` is not enough for untrusted files: a few bytes make it allocate
gigabytes for the memo, overflow the C stack by hashing a nested tuple, or build a value that takes hours to print.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any

from .limits import MAX_DEPTH, MAX_INTEGER_BYTES, MIN_CONTAINER_BYTES, MIN_CONTAINERS
from .pickle_values import binary_text, check_key, decimal, integer_or_boolean, printable, python_2_text, quoted_text


class ForbiddenPickleError(pickle.UnpicklingError):
    """The pickle imports or calls something that the reader does not allow."""


class PickleReader:
    """Interpreter of pickle opcodes for plain values: containers, strings, bytes, numbers, booleans and None.

    Subclasses may allow some imports and calls in `find_global`, `call`, `build` and `find_persistent`, which all
    raise a `ForbiddenPickleError` here.

    Args:
        data: the file's content.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # stacks below each open MARK
        self.memo: dict[int, Any] = {}
        self._free_containers = max(MIN_CONTAINERS, len(data) // MIN_CONTAINER_BYTES)
        # Protocol 0 is text. If each line ends with CRLF, the line ends were converted.
        is_text = data[:1] != pickle.PROTO
        self._line_end = b"\r\n" if is_text and 0 < data.count(b"\n") == data.count(b"\r\n") else b"\n"

    def load(self, start: int = 0) -> Any:
        """Read one value; afterwards, `position` is behind it.

        Raises:
            ForbiddenPickleError: an import or a call that is not allowed.
            ValueError: damaged data, or a value that exceeds the limits.
        """
        self.stack, self.marks, self.memo, self.position = [], [], {}, start
        try:
            return self._run()
        except (IndexError, KeyError, TypeError, AttributeError, OverflowError, struct.error) as error:
            problem = f"{type(error).__name__} at byte {self.position:,}"
            raise ValueError(f"opcodes that do not fit together, {problem}") from None

    def _run(self) -> Any:
        """Execute opcodes until STOP. The most frequent ones are handled without a call of their own, for speed."""
        data, size, memo, stack = self.data, len(self.data), self.memo, self.stack
        position, line_end = self.position, self._line_end
        try:
            while position < size:
                opcode = data[position]
                position += 1
                if opcode in _LINES:
                    end = data.find(line_end, position)
                    if end < 0:
                        raise ValueError("truncated")
                    text = data[position:end]
                    position = end + len(line_end)
                    decode = _LINES[opcode]
                    if decode is not None:
                        stack.append(decode(text))
                    elif not text.isdigit() or len(text) > 10:
                        raise ValueError(f"a memo index that is not a number, {text[:20]!r}")
                    elif opcode == _PUT:
                        memo[int(text)] = stack[-1]
                    else:
                        stack.append(memo[int(text)])
                elif opcode in _SIZED:
                    width, decode = _SIZED[opcode]
                    begin = position + width
                    position = begin + int.from_bytes(data[position:begin], "little")
                    if position > size:
                        raise ValueError("truncated")
                    stack.append(decode(data[begin:position]))
                elif opcode in _PUTS:
                    end = position + _PUTS[opcode]
                    memo[int.from_bytes(data[position:end], "little")] = stack[-1]
                    position = end
                elif opcode in _GETS:
                    end = position + _GETS[opcode]
                    stack.append(memo[int.from_bytes(data[position:end], "little")])
                    position = end
                elif opcode == _MEMOIZE:
                    memo[len(memo)] = stack[-1]
                elif opcode in _INTEGERS:
                    end = position + _INTEGERS[opcode]
                    stack.append(int.from_bytes(data[position:end], "little"))
                    position = end
                elif opcode == _MARK:
                    self.marks.append(stack)
                    if len(self.marks) > MAX_DEPTH:
                        raise ValueError(f"containers nested more than {MAX_DEPTH} levels deep")
                    stack = self.stack = []
                elif opcode == _SETITEM:
                    value, key, target = stack.pop(), stack.pop(), stack[-1]
                    if not isinstance(target, dict):
                        raise ValueError("keys and values outside a dict")
                    target[key if type(key) is str else check_key(key)] = value
                elif opcode == _APPEND:
                    value = stack.pop()
                    if not isinstance(stack[-1], list):
                        raise ValueError("items outside a list")
                    stack[-1].append(value)
                elif opcode == _STOP:
                    return stack.pop()
                elif opcode in _ACTIONS:
                    self.position = position
                    _ACTIONS[opcode](self)
                    position, stack = self.position, self.stack
                else:
                    raise ValueError(f"unknown opcode {opcode:#04x} at byte {position - 1:,}")
            raise ValueError("truncated")
        finally:
            self.position = position  # for the caller, and for error messages

    def find_global(self, module: str, name: str) -> Any:
        """Return the value that represents a class or function."""
        raise ForbiddenPickleError(f"imports {printable(f'{module}.{name}')}")

    def call(self, function: Any, arguments: tuple) -> Any:
        """Return the result of REDUCE or NEWOBJ."""
        raise ForbiddenPickleError("calls a function")

    def build(self, instance: Any, state: Any) -> None:
        """Set the state of an object."""
        raise ForbiddenPickleError("sets the state of an object")

    def find_persistent(self, identifier: Any) -> Any:
        """Return an object that is stored outside the pickle."""
        raise ForbiddenPickleError("refers to objects outside the file")

    # -- arguments of opcodes -----------------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise ValueError("truncated")
        part = self.data[self.position : end]
        self.position = end
        return part

    def line(self) -> bytes:
        end = self.data.find(self._line_end, self.position)
        if end < 0:
            raise ValueError("truncated")
        part = self.data[self.position : end]
        self.position = end + len(self._line_end)
        return part

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_container(self, value: Any) -> None:
        """Push a new container. An empty one is a single byte in the file, but takes up to 200 bytes of memory."""
        self._free_containers -= 1
        if self._free_containers < 0:
            raise ValueError("more containers than a file of this size can reasonably hold")
        self.stack.append(value)

    # -- containers ---------------------------------------------------------------------------------------------------

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("keys and values outside a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key if type(key) is str else check_key(key)] = value

    def append_items(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("items outside a list")
        self.stack[-1].extend(items)

    def add_items(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], set):
            raise ValueError("items outside a set")
        self.stack[-1].update(map(check_key, items))

    def new_dict(self, items: list[Any]) -> None:
        self.push_container({})
        self.set_items(items)

    def pop_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("too few items for a tuple")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push_container(items)

    def pop_or_pop_mark(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def instantiate(self, module: str, name: str, arguments: list[Any]) -> None:
        self.push(self.call(self.find_global(module, name), tuple(arguments)))

    def call_top(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple):
            raise ValueError("arguments that are not a tuple")
        self.push(self.call(function, arguments))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name that is not text")
        self.push(self.find_global(module, name))

    def build_top(self) -> None:
        state = self.stack.pop()
        self.build(self.stack[-1], state)


def _long(reader: PickleReader, width: int) -> int:
    count = int.from_bytes(reader.take(width), "little")
    if count > MAX_INTEGER_BYTES:
        raise ValueError(f"an integer of {count:,} bytes")
    return int.from_bytes(reader.take(count), "little", signed=True)


def _global(reader: PickleReader) -> None:
    module, name = reader.line(), reader.line()
    reader.push(reader.find_global(module.decode("utf-8", "replace"), name.decode("utf-8", "replace")))


def _inst(reader: PickleReader) -> None:
    module, name = (reader.line().decode("utf-8", "replace") for _ in range(2))
    reader.instantiate(module, name, reader.pop_mark())


def _obj(reader: PickleReader) -> None:
    items = reader.pop_mark()
    reader.push(reader.call(items[0], tuple(items[1:])))


def _newobj_ex(reader: PickleReader) -> None:
    raise ForbiddenPickleError("creates an object with keyword arguments")


def _extension(reader: PickleReader) -> None:
    raise ForbiddenPickleError("imports from the extension registry")


_STOP, _MARK, _MEMOIZE, _PUT, _SETITEM, _APPEND = (
    code[0] for code in (pickle.STOP, pickle.MARK, pickle.MEMOIZE, pickle.PUT, pickle.SETITEM, pickle.APPEND)
)
# Values that follow their length: number of bytes of the length, and how to decode the value.
_SIZED: dict[int, tuple[int, Callable[[bytes], Any]]] = {
    pickle.SHORT_BINSTRING[0]: (1, python_2_text),
    pickle.BINSTRING[0]: (4, python_2_text),
    pickle.SHORT_BINUNICODE[0]: (1, binary_text),
    pickle.BINUNICODE[0]: (4, binary_text),
    pickle.BINUNICODE8[0]: (8, binary_text),
    pickle.SHORT_BINBYTES[0]: (1, bytes),
    pickle.BINBYTES[0]: (4, bytes),
    pickle.BINBYTES8[0]: (8, bytes),
    pickle.BYTEARRAY8[0]: (8, bytes),
}
# Number of bytes of the index in the memo.
_PUTS = {pickle.BINPUT[0]: 1, pickle.LONG_BINPUT[0]: 4}
_GETS = {pickle.BINGET[0]: 1, pickle.LONG_BINGET[0]: 4}
# Number of bytes of an unsigned integer.
_INTEGERS = {pickle.BININT1[0]: 1, pickle.BININT2[0]: 2}
# Opcodes whose argument is the rest of the line, and how to decode a value from it; None: an index in the memo.
_LINES: dict[int, Callable[[bytes], Any] | None] = {
    _PUT: None,
    pickle.GET[0]: None,
    pickle.INT[0]: integer_or_boolean,
    pickle.LONG[0]: decimal,
    pickle.FLOAT[0]: float,
    pickle.STRING[0]: quoted_text,
    pickle.UNICODE[0]: lambda text: text.decode("raw-unicode-escape"),
}
_ACTIONS: dict[int, Callable[[PickleReader], Any]] = {
    pickle.NONE[0]: lambda r: r.push(None),
    pickle.NEWTRUE[0]: lambda r: r.push(True),
    pickle.NEWFALSE[0]: lambda r: r.push(False),
    pickle.EMPTY_LIST[0]: lambda r: r.push_container([]),
    pickle.EMPTY_DICT[0]: lambda r: r.push_container({}),
    pickle.EMPTY_TUPLE[0]: lambda r: r.push(()),
    pickle.EMPTY_SET[0]: lambda r: r.push_container(set()),
    pickle.BININT[0]: lambda r: r.push(int.from_bytes(r.take(4), "little", signed=True)),
    pickle.LONG1[0]: lambda r: r.push(_long(r, 1)),
    pickle.LONG4[0]: lambda r: r.push(_long(r, 4)),
    pickle.BINFLOAT[0]: lambda r: r.push(struct.unpack(">d", r.take(8))[0]),
    pickle.DUP[0]: lambda r: r.push(r.stack[-1]),
    pickle.LIST[0]: lambda r: r.push_container(r.pop_mark()),
    pickle.TUPLE[0]: lambda r: r.push_container(tuple(r.pop_mark())),
    pickle.FROZENSET[0]: lambda r: r.push_container(frozenset(map(check_key, r.pop_mark()))),
    pickle.PERSID[0]: lambda r: r.push(r.find_persistent(r.line())),
    pickle.BINPERSID[0]: lambda r: r.push(r.find_persistent(r.stack.pop())),
    pickle.PROTO[0]: lambda r: r.take(1),
    pickle.FRAME[0]: lambda r: r.take(8),
    pickle.POP[0]: lambda r: r.pop_or_pop_mark(),
    pickle.POP_MARK[0]: lambda r: r.pop_mark(),
    pickle.TUPLE1[0]: lambda r: r.pop_tuple(1),
    pickle.TUPLE2[0]: lambda r: r.pop_tuple(2),
    pickle.TUPLE3[0]: lambda r: r.pop_tuple(3),
    pickle.DICT[0]: lambda r: r.new_dict(r.pop_mark()),
    pickle.APPENDS[0]: lambda r: r.append_items(r.pop_mark()),
    pickle.SETITEMS[0]: lambda r: r.set_items(r.pop_mark()),
    pickle.ADDITEMS[0]: lambda r: r.add_items(r.pop_mark()),
    pickle.GLOBAL[0]: _global,
    pickle.STACK_GLOBAL[0]: lambda r: r.stack_global(),
    pickle.REDUCE[0]: lambda r: r.call_top(),
    pickle.NEWOBJ[0]: lambda r: r.call_top(),
    pickle.NEWOBJ_EX[0]: _newobj_ex,
    pickle.BUILD[0]: lambda r: r.build_top(),
    pickle.INST[0]: _inst,
    pickle.OBJ[0]: _obj,
    pickle.EXT1[0]: _extension,
    pickle.EXT2[0]: _extension,
    pickle.EXT4[0]: _extension,
}
