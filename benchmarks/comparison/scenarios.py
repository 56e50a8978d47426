"""What is asked of every router: how long the replies are, how many come at once, and how."""

from typing import Final

import msgspec

TOKENS: Final = (16, 1024, 16384)
CONNECTIONS: Final = (64, 1024)

_WHOLE_S: Final = {16: 1, 1024: 2, 16384: 8}
_STREAMED_S: Final = {16: 4, 1024: 8, 16384: 12}
"""Seconds in which 1,024 connections get their replies more than once, by tokens."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """Replies of `tokens` output tokens with log-probabilities, asked for on `connections` at a time."""

    tokens: int
    connections: int
    is_streamed: bool = False

    def __str__(self) -> str:
        """Name it in a line of progress."""
        way = "streamed" if self.is_streamed else "whole"
        return f"{self.tokens:,} tokens, {self.connections:,} connections, {way}"

    @property
    def least_seconds(self) -> int:
        """How long one measurement has to take for each connection to get several replies."""
        if self.connections < max(CONNECTIONS):
            return 1
        return (_STREAMED_S if self.is_streamed else _WHOLE_S)[self.tokens]


QUICK: Final = (Scenario(tokens=16, connections=64), Scenario(tokens=1024, connections=64))
"""The scenarios that the goals are about."""

FULL: Final = tuple(
    Scenario(tokens=tokens, connections=connections, is_streamed=is_streamed)
    for is_streamed in (False, True)
    for connections in CONNECTIONS
    for tokens in TOKENS
)
