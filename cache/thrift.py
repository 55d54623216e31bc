"""Reads Thrift's compact protocol, the encoding of Parquet's footer and page headers, into plain Python values."""

import struct
from typing import Any

MAX_DEPTH = 12


class Compact:
    """Reads `data` from its start; `at` is the position of the next byte.

    Methods raise ValueError where the data ends early or contradicts itself.
    """

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Reads a struct: field id -> bool, number, bytes, list or struct. Raises ValueError beyond MAX_DEPTH levels."""
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
        """Reads a value of Thrift's type `kind`, within a struct that is nested `depth` levels deep."""
        if kind in (4, 5, 6):
            return self.zigzag()
        if kind == 8:
            return self.take(self.varint())
        if kind == 12:
            return self.struct(depth + 1)
        if kind in (9, 10):
            return self.sequence(depth)
        if kind in (1, 2, 3):  # in a list a bool takes a byte, as an 8-bit number does
            return self.byte()
        if kind == 7:
            return struct.unpack("<d", self.take(8))[0]
        raise ValueError(f"a field of type {kind}")

    def sequence(self, depth: int) -> list[Any]:
        """Reads a list or set. Raises ValueError if it claims more elements than bytes are left, before it takes memory."""
        head = self.byte()
        size = self.varint() if head >> 4 == 15 else head >> 4
        if size > len(self.data) - self.at:  # each element takes at least a byte
            raise ValueError(f"a list of {size} elements in {len(self.data) - self.at} bytes")
        return [self.value(head & 15, depth) for _ in range(size)]

    def zigzag(self) -> int:
        """Reads a signed number: 0, -1, 1, -2 ... are written as the varints 0, 1, 2, 3 ..."""
        number = self.varint()
        return number >> 1 ^ -(number & 1)

    def varint(self) -> int:
        """Reads an unsigned number of at most 64 bits, 7 bits a byte, the lowest first."""
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
        """Reads `length` bytes. Raises ValueError where fewer are left."""
        if length > len(self.data) - self.at:
            raise ValueError(f"{length} bytes, where {len(self.data) - self.at} are left")
        self.at += length
        return self.data[self.at - length : self.at]
