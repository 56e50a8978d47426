import json
import struct
from array import array

from espalier.middleware.buffers import Buffer, write_buffers


def test_layout_is_that_of_safetensors_with_every_array_aligned() -> None:
    arrays: dict[str, Buffer] = {
        "mask": array("B", [1, 0, 1]),
        "tokens": array("i", [1, -2, 3]),
        "none": array("i"),
        "logprobs": array("d", [-0.5]),
    }
    written = write_buffers(arrays, {"note": 'a "quoted" é'})
    (size,) = struct.unpack("<Q", written[:8])
    header = json.loads(written[8 : 8 + size])
    data = written[8 + size :]
    assert size % 8 == 0
    assert header == {
        "__metadata__": {"note": 'a "quoted" é'},
        "logprobs": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]},
        "tokens": {"dtype": "I32", "shape": [3], "data_offsets": [8, 20]},
        "none": {"dtype": "I32", "shape": [0], "data_offsets": [20, 20]},
        "mask": {"dtype": "U8", "shape": [3], "data_offsets": [20, 23]},
    }
    assert data == struct.pack("<d3i3B", -0.5, 1, -2, 3, 1, 0, 1)
