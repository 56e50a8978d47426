"""What the token tree must give back, by looking at every trajectory in a plain list."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import pygtrie

from espalier.sglang import WeightSpan

from .driver import IM_END
from .tokenizers_made import byte_level

STOP = "<|im_end|>"


def encode(text: str) -> list[int]:
    return byte_level().encode(text, add_special_tokens=False).ids


def decode(ids: Sequence[int], *, skips_special_tokens: bool = False) -> str:
    return byte_level().decode(list(ids), skip_special_tokens=skips_special_tokens)


class Token(NamedTuple):
    """One token of a path; `source` is the number of the recording that sampled it, None for context."""

    id: int
    source: int | None = None
    logprob: float | None = None


Path = tuple[Token, ...]


def context(ids: Iterable[int]) -> Path:
    return tuple(Token(each) for each in ids)


def ids_of_path(path: Path) -> list[int]:
    return [token.id for token in path]


@dataclass(kw_only=True, eq=False)
class Recording:
    """One trajectory as its caller knows it: all that the worker read, then what it sampled."""

    number: int
    rid: str
    session_id: str | None
    prompt: Path
    prompt_text: str | None
    sampled: Path
    stops: bool
    skips: bool
    weight_versions: tuple[WeightSpan, ...]
    used_at: int
    """The step at which it was last used, for certain."""
    may_be_used_at: int
    """The latest step at which it may have been used."""

    @property
    def path(self) -> Path:
        return self.prompt + self.sampled

    @property
    def reply(self) -> str:
        shown = ids_of_path(self.sampled)
        return decode(shown[: len(shown) - self.stops], skips_special_tokens=self.skips)

    @property
    def is_silent(self) -> bool:
        """Whether it sampled something, a stop not counted, and showed nothing."""
        return len(self.sampled) > self.stops and not self.reply

    @property
    def texts(self) -> tuple[str, ...]:
        """Its text as the client saw it, and with the trimmed stop spelled out; none where not known."""
        if self.prompt_text is None:
            return ()
        seen = self.prompt_text + self.reply
        return (seen, seen + STOP) if self.stops else (seen,)


@dataclass
class NaiveTree:
    """Trajectories in the order in which they were recorded."""

    recordings: list[Recording] = field(default_factory=list)

    def ending_at(self, text: str) -> list[Recording]:
        return [each for each in self.recordings if text in each.texts]

    def goes_on_from(self, source: int) -> bool:
        """Say whether a trajectory has sampled tokens of another one in its prompt."""
        return any(source in sources(each.prompt) for each in self.recordings)

    def has_path(self, path: Path, others: Iterable[Path]) -> bool:
        """Say whether a trajectory, or one of the `others`, begins with `path`, up to its last sampled token.

        Context may follow that is nobody's any more: a prompt stays for another that shares its beginning.
        """
        known = [*(each.path for each in self.recordings), *others]
        size = max((at + 1 for at, token in enumerate(path) if token.source is not None), default=0)
        return size == 0 or any(each[:size] == path[:size] for each in known)

    def longest_beginning(self, text: str) -> str:
        """Return the longest text of a whole trajectory, ended by its reply, with which `text` begins."""
        known = [
            each for recording in self.recordings for each in recording.texts if each != recording.prompt_text
        ]
        longest = max((each for each in known if text.startswith(each)), key=len, default="")
        step = pygtrie.CharTrie(dict.fromkeys(known, True)).longest_prefix(text)
        assert (step.key if step else "") == longest
        return longest

    def furthest_said(self, text: str) -> list[Recording]:
        """Return those whose reply, or stop, `text` contains and that reach furthest, stops not counted."""
        whole = [
            each
            for each in self.recordings
            if each.texts and text.startswith(each.texts[0] if each.reply else each.texts[-1])
            if each.texts[-1] != each.prompt_text
        ]
        furthest = max((len(each.texts[0]) for each in whole), default=0)
        return [each for each in whole if len(each.texts[0]) == furthest]

    def least_match(self, text: str, session_id: str | None) -> int:
        """Return how many characters of `text` must be found: what was said, and its stop if `text` has it.

        The session's own reply is preferred to one that was stopped as `text` says.
        """
        said = self.furthest_said(text)
        own = [each for each in said if each.session_id == session_id is not None]
        found = [max((each for each in one.texts if text.startswith(each)), key=len) for one in own or said]
        longest = max(map(len, found), default=0)
        assert longest <= len(self.longest_beginning(text))
        return longest

    def last_silent(self, text: str, session_id: str | None) -> Recording | None:
        """Return the session's latest reply that showed nothing and that `text` must go on from, if any.

        It must where nothing that was said reaches further into the text, or as far in the same session.
        """
        said = self.furthest_said(text)
        reach = max((len(each.texts[0]) + (each.session_id == session_id) for each in said), default=0)
        silent = [
            each
            for each in self.recordings
            if each.session_id == session_id is not None
            and each.is_silent
            and each.prompt_text is not None
            and reach <= len(each.prompt_text) < len(text)
            and text.startswith(each.prompt_text)
        ]
        return max(silent, key=lambda each: (len(each.prompt_text or ""), each.number), default=None)

    def longest_beginning_of_ids(self, ids: list[int]) -> int:
        """Return the length of the longest whole trajectory, ended by its reply, with which `ids` begin."""
        known = (ids_of_path(each.path) for each in self.recordings if each.sampled)
        return max((len(each) for each in known if ids[: len(each)] == each), default=0)

    def text_of(self, path: Path, recordings: dict[int, Recording]) -> str:
        """Return the text of a path: each generation's as its client saw it, a whole one's stop included."""
        parts = []
        for source, tokens in groupby(path, key=lambda token: token.source):
            ids = [token.id for token in tokens]
            said = recordings[source] if source is not None else None
            if said is None:
                parts.append(decode(ids))
            elif said.stops and len(ids) == len(said.sampled):
                parts.append(decode(ids[:-1], skips_special_tokens=said.skips) + STOP)
            else:
                parts.append(decode(ids, skips_special_tokens=said.skips))
        return "".join(parts)


def sources(path: Path) -> set[int]:
    return {token.source for token in path if token.source is not None}


def stop_of(*, stops: bool) -> list[int]:
    return [IM_END] if stops else []
