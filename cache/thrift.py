"""Thrift's compact protocol, in which Parquet keeps its footer and its pages' headers: read into plain values."""

import struct
from typing import Any

MAX_DEPTH = 12


class Compact:
    """Reads `data` from its start; `at` is how far it came. Raises ValueError on what is cut, or contradicts itself."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Field id: number, bytes, list or struct."""
        if depth > MAX_DEPTH:
            raise ValueError(f"structures nested more than {MAX_DEPTH} levels deep")
        fields: dict[int, Any] = {}
        field = 0
        while head := self.byte():
            field = field + (head >> 4) if head >> 4 else self.zigzag()
            if field in fields:
                raise ValueError(f"a structure with two fields {field}")
            kind = head & 15
            fields[field] = kind == 1 if kind in (1, 2) else self.value(kind, depth)
        return fields

    def value(self, kind: int, depth: int) -> Any:
        if kind in (4, 5, 6):
            return self.zigzag()
        if kind == 8:
            return self.take(self.varint())
        if kind == 12:
            return self.struct(depth + 1)
        if kind in (9, 10):
            return self.sequence(depth)
        if kind in (1, 2, 3):  # a truth value in a list takes a byte, as a number of 8 bits does
            return self.byte()
        if kind == 7:
            return struct.unpack("<d", self.take(8))[0]
        raise ValueError(f"a field of type {kind}")

    def sequence(self, depth: int) -> list[Any]:
        head = self.byte()
        size = self.varint() if head >> 4 == 15 else head >> 4
        if size > len(self.data) - self.at:  # no element takes less than a byte
            raise ValueError(f"a list of {size} elements in {len(self.data) - self.at} bytes")
        return [self.value(head & 15, depth) for _ in range(size)]

    def zigzag(self) -> int:
        number = self.varint()
        return number >> 1 ^ -(number & 1)

    def varint(self) -> int:
        number = shift = 0
        while (byte := self.byte()) & 128:
            number |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")
        return number | byte << shift

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise ValueError("cut short")
        self.at += 1
        return self.data[self.at - 1]

    def take(self, length: int) -> bytes:
        if length > len(self.data) - self.at:
            raise ValueError(f"{length} bytes, where {len(self.data) - self.at} are left")
        self.at += length
        return self.data[self.at - length : self.at]
