"""Streaming generation: what was sampled before a connection broke is not lost.

Source: slime's `sglang_streaming_rollout`, which builds the sample anew for each event. Here the events are
added up and appended once.
"""

import functools
from collections.abc import Mapping
from typing import Any

from ..errors import UpstreamError
from ..sglang import GenerateReply
from .client import RouterClient
from .config import RolloutConfig
from .events import StreamedReply
from .generate import generate_by
from .plugins import generate_functions
from .sample import Sample
from .state import rollout_state
from .timeline import RequestLog


@generate_functions.register("streaming")
async def generate_streaming(
    args: RolloutConfig, sample: Sample, sampling_params: Mapping[str, Any]
) -> Sample:
    """Do as `generate` does, over a stream.

    Where the stream breaks or its deadline passes after some tokens came, the sample keeps them and is
    aborted: the next call resumes it from the ids that came. Of a prompt that was sent as text, the router's
    radix tree tells the ids, as for `generate`: it records streams, too, those that break off included.

    Raises: as `generate`; BadReply also where the stream is malformed.
    """
    async with rollout_state(args) as state:
        ask = functools.partial(_streamed, requests=state.requests)
        return await generate_by(ask, args, sample, sampling_params)


async def _streamed(
    client: RouterClient,
    payload: Mapping[str, Any],
    headers: Mapping[str, str] | None,
    *,
    requests: RequestLog,
) -> GenerateReply:
    reply = StreamedReply()
    try:
        async for data in client.stream(payload, headers):
            reply.add(data)
            if reply.tokens_so_far:
                requests.note_first_token(payload["rid"])
    except UpstreamError as error:
        if not reply.tokens_so_far:
            raise
        return reply.cut_off(str(error))
    return reply.whole()
