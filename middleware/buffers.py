"""Arrays as raw bytes, for trajectories that are too long for JSON: the layout of safetensors files.

| bytes    | what                                                                                     |
|----------|------------------------------------------------------------------------------------------|
| 8        | N, the size of the header in bytes: unsigned, little-endian                              |
| N        | the header: JSON, filled up with spaces so that the arrays begin at a multiple of 8      |
| the rest | the arrays, little-endian, one behind the other, those of the widest items first         |

The header has an entry an array, `"name": {"dtype", "shape", "data_offsets": [start, end]}`, whose offsets
are counted from the end of the header; and `"__metadata__"`, which maps names to texts. Every array begins
at a multiple of its item's size, so that it can be used where it lies.

Source: the format's description, https://github.com/huggingface/safetensors.
"""

import struct
import sys
from array import array
from collections.abc import Mapping
from typing import TypeAlias

import msgspec

Buffer: TypeAlias = "array[int] | array[float]"

DTYPES = {"B": "U8", "i": "I32", "d": "F64"}
"""The format's names for the typecodes of arrays."""

_ALIGNMENT = 8
"""The width of the widest item in bytes."""

_encode = msgspec.json.Encoder().encode


def write_buffers(arrays: Mapping[str, Buffer], metadata: Mapping[str, str]) -> bytes:
    """Return one-dimensional `arrays` and `metadata` in the layout above."""
    ordered = sorted(arrays.items(), key=lambda named: -named[1].itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, values in ordered:
        start, end = end, end + len(values) * values.itemsize
        header[name] = {
            "dtype": DTYPES[values.typecode],
            "shape": [len(values)],
            "data_offsets": [start, end],
        }
    head = _encode(header)
    head += b" " * (-len(head) % _ALIGNMENT)
    return b"".join([struct.pack("<Q", len(head)), head, *(_little_endian(values) for _, values in ordered)])


def _little_endian(values: Buffer) -> "Buffer | bytes":
    if sys.byteorder == "little":
        return values
    swapped = values[:]
    swapped.byteswap()
    return swapped.tobytes()
