"""A worker in this process: samples what the test says, answers as SGLang does, remembers the calls."""

from collections.abc import Callable, Sequence
from typing import Any

import tokenizers

from espalier.calls import Call, JsonObject, Reply
from espalier.errors import NoWorkerAvailable

Sample = Callable[[list[int]], list[int]]
"""The ids that follow a prompt."""


def logprob(ids: Sequence[int], version: str) -> float:
    """Return the log-probability of the last id after the others: a pure function, so each can be checked."""
    return -(hash((tuple(ids), version)) % 1_000_003) / 1_000_003


class FakeWorker:
    """A handler. `sample` decides on the tokens; a last token in `stop_ids` ends it as a stop."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        sample: Sample,
        *,
        stop_ids: Sequence[int] = (),
        tokenizer_path: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.sample = sample
        self.stop_ids = stop_ids
        self.tokenizer_path = tokenizer_path
        self.weight_version = "v1"
        self.is_up = True
        self.sent: list[JsonObject] = []
        self.calls: list[Call] = []
        self.replies: list[JsonObject] = []
        self.finish: JsonObject | None = None

    async def __call__(self, call: Call) -> Reply:
        self.calls.append(call)
        if not self.is_up:
            raise NoWorkerAvailable("no worker")
        if call.path == "/model_info" and self.tokenizer_path is not None:
            return Reply.of_json({"tokenizer_path": self.tokenizer_path})
        if call.path == "/tokenize" and self.tokenizer_path is None:
            return Reply.of_json(self._tokenize(call.json()))
        if call.path != "/generate":
            return Reply.of_json({"detail": "Not Found"}, 404)
        body = call.json()
        self.sent.append(body)
        reply = self.answer(body)
        self.replies.append(reply)
        return Reply.of_json(reply)

    def _tokenize(self, body: JsonObject) -> JsonObject:
        encoded = self.tokenizer.encode(body["prompt"], add_special_tokens=body["add_special_tokens"])
        return {"tokens": encoded.ids, "count": len(encoded.ids)}

    def answer(self, body: JsonObject) -> JsonObject:
        """Return the reply to one prompt by ids (or by text, which is tokenised)."""
        prompt = body["input_ids"] if "input_ids" in body else self.tokenizer.encode(body["text"]).ids
        params: dict[str, Any] = body.get("sampling_params") or {}
        ids = self.sample(list(prompt))
        skips = params.get("skip_special_tokens", True)
        finish: JsonObject = {"type": "length", "length": len(ids)}
        shown = ids
        if ids and ids[-1] in self.stop_ids:
            finish = {"type": "stop", "matched": ids[-1]}
            shown = ids if params.get("no_stop_trim") else ids[:-1]
        meta: JsonObject = {
            "id": body.get("rid") or f"rid-{len(self.replies)}",
            "finish_reason": self.finish or finish,
            "prompt_tokens": len(prompt),
            "weight_version": self.weight_version,
        }
        if body.get("return_logprob"):
            meta["input_token_logprobs"] = []
            meta["output_token_logprobs"] = [
                [logprob([*prompt, *ids[: at + 1]], self.weight_version), each, None]
                for at, each in enumerate(ids)
            ]
            meta["output_token_logprobs_length"] = len(ids)
        meta["completion_tokens"] = len(ids)
        meta["weight_versions"] = [{"version": self.weight_version, "start": 0, "end": len(ids)}]
        text = self._detokenise(list(prompt), shown, skips=skips)
        return {"text": text, "output_ids": ids, "meta_info": meta}

    def _detokenise(self, prompt: list[int], shown: list[int], *, skips: bool) -> str:
        """Return the text that `shown` add to the prompt's end: a first word keeps the space before it."""
        before = [each for each in prompt if isinstance(each, int)]  # a batch's prompts are none
        seen = self.tokenizer.decode(before, skip_special_tokens=skips)
        whole = self.tokenizer.decode([*before, *shown], skip_special_tokens=skips)
        alone = self.tokenizer.decode(shown, skip_special_tokens=skips)
        return whole[len(seen) :] if whole.startswith(seen) else alone
