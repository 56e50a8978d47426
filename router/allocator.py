"""Tells glibc's allocator to keep the memory of a finished reply for the next one.

By default it gives the top of the heap back to the kernel as soon as 128 KiB of it are free, and takes blocks
of that size from the kernel one by one. A router frees and takes such blocks for every long reply: each time
the kernel maps pages, fills them with zeros, and unmaps them.
"""

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
"""Parameters of mallopt(3), as malloc.h numbers them."""

KEPT_BYTES: Final = 256 << 20
"""Free memory at the top of the heap that is kept: replies in flight, many times over."""

GROWTH_BYTES: Final = 16 << 20
"""What the heap grows by at a time."""

LARGEST_HEAP_BLOCK_BYTES: Final = 32 << 20
"""Larger blocks are mapped by themselves; glibc allows no more."""


def keep_freed_memory() -> None:
    """Set the thresholds, where the C library has them; others (musl, macOS) are left as they are."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(_M_TOP_PAD, GROWTH_BYTES)
    mallopt(_M_MMAP_THRESHOLD, LARGEST_HEAP_BLOCK_BYTES)
