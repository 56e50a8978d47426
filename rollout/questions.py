"""What a worker is asked for one sample, and the tokens that it must have read."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import RolloutError
from ..sglang import GenerateReply
from .images import IMAGES, Reference, image_data
from .problems import TokensDiffer
from .processors import processed
from .sample import Sample
from .state import RolloutState


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt as it is sent."""

    prompt: str

    payload: dict[str, Any]
    """`input_ids` or `text`, and `image_data`"""

    tokens: list[int]
    """the sample's tokens so far; none where only the router can tell them"""

    read_tokens: int | None
    """tokens that the worker must have read; None where it is not known what it makes of the pictures"""

    train_inputs: dict[str, Any] | None = None
    """what a processor made of the pictures"""

    def check_read(self, reply: GenerateReply) -> None:
        """Check that the worker read all that was sent: SGLang can be told to cut long prompts silently.

        Raises: TokensDiffer where it read another number of tokens.
        """
        read = reply.meta_info.prompt_tokens
        if read is None:
            return
        if self.read_tokens is not None and read != self.read_tokens:
            raise TokensDiffer(f"the worker read {read} prompt tokens, though {self.read_tokens} were sent")
        if read < len(self.tokens):
            raise TokensDiffer(f"the worker read {read} prompt tokens of {len(self.tokens)} and images")


async def question_of(state: RolloutState, sample: Sample) -> Question:
    """Return what to send for `sample`: its prompt and, when it goes on, its response so far.

    Raises: RolloutError where the prompt cannot be sent; BadImage, and what a processor raises.
    """
    prompt = sample.prompt
    if not isinstance(prompt, str):
        raise RolloutError(f"sample {sample.index}: the prompt must be a text, not a list of messages")
    if not prompt and not sample.tokens:
        raise RolloutError(f"sample {sample.index}: the prompt is empty")
    images = (sample.multimodal_inputs or {}).get(IMAGES)
    if images:
        return await _question_with_images(state, sample, prompt, images)
    tokens = list(sample.tokens)
    if not tokens and state.tokenizer is not None:
        tokens = state.tokenizer.encode(prompt)
    return Question(
        prompt=prompt,
        payload={"input_ids": tokens} if tokens else {"text": prompt},
        tokens=tokens,
        read_tokens=len(tokens) if tokens else None,
    )


async def _question_with_images(
    state: RolloutState, sample: Sample, prompt: str, images: Sequence[Reference]
) -> Question:
    """Return a question with pictures: a worker puts their tokens in place of one that stands for each.

    What is sent has one token a picture. A sample's tokens are those that the worker makes of it where a
    processor tells them, and their number is checked; without one they are what was sent.
    """
    if state.tokenizer is None:
        raise RolloutError(f"sample {sample.index}: images need --hf-checkpoint, to send token ids")
    data = await asyncio.to_thread(lambda: [image_data(image) for image in images])
    processor = state.plugins.multimodal_processor
    if processor is None:
        sent = list(sample.tokens) or state.tokenizer.encode(prompt)
        return Question(
            prompt=prompt,
            payload={"input_ids": sent, "image_data": data},
            tokens=sent,
            read_tokens=None,
            train_inputs=sample.multimodal_train_inputs,
        )
    tokens, train_inputs = list(sample.tokens), sample.multimodal_train_inputs
    if not tokens or train_inputs is None:
        made = await processed(processor, state.args, prompt, images)
        tokens, train_inputs = tokens or made.input_ids, made.train_inputs
    response = tokens[len(tokens) - sample.response_length :]
    return Question(
        prompt=prompt,
        payload={"input_ids": state.tokenizer.encode(prompt) + response, "image_data": data},
        tokens=tokens,
        read_tokens=len(tokens),
        train_inputs=train_inputs,
    )
