"""Seeds that depend on what they are for, and on nothing else: not on time, order or hash randomisation."""

import hashlib
from typing import Final

_SEED_BYTES: Final = 4


def stable_seed(*parts: object) -> int:
    """Return a number from 0 to 2³¹ - 1, the same for the same parts in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=_SEED_BYTES).digest()
    return int.from_bytes(digest, "big") >> 1
