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


def _samples(body: JsonObject) -> int:
    params = body.get("sampling_params") or {}
    samples: int = (params[0] if isinstance(params, list) else params).get("n") or 1
    return samples


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
            if "prompt" not in call.json():
                return Reply.of_json({"message": "no chat template"}, 400)
            return Reply.of_json(self._tokenize(call.json()))
        if call.path == "/detokenize" and self.tokenizer_path is None:
            return Reply.of_json(self._detokenize(call.json()))
        if call.path != "/generate":
            return Reply.of_json({"detail": "Not Found"}, 404)
        body = call.json()
        self.sent.append(body)
        answers = self.answers(body)
        return Reply.of_json(answers if self.is_many(body) else answers[0])

    def is_many(self, body: JsonObject) -> bool:
        """Say whether a body is answered with a list."""
        prompts = body.get("input_ids") or [body["text"]]
        return isinstance(prompts[0], list) or _samples(body) > 1

    def answers(self, body: JsonObject) -> list[JsonObject]:
        """Return what is answered to each prompt, `n` times, as SGLang would read a batch."""
        if not self.is_many(body):
            self.replies.append(self.answer(body))
            return self.replies[-1:]
        prompts = body["input_ids"] if isinstance(body["input_ids"][0], list) else [body["input_ids"]]
        for at, ids in enumerate(prompts):
            rid = body.get("rid")
            one = {**body, "input_ids": ids, "rid": f"{rid}_{at}" if isinstance(rid, str) else None}
            for field in ("rid", "sampling_params", "return_logprob", "logprob_start_len"):
                if isinstance(body.get(field), list):
                    one[field] = body[field][at]
            if _samples(body) > 1:
                one["rid"] = None
            self.replies += [
                self.answer({**one, "rid": one["rid"] or f"made-{at}-{again}"})
                for again in range(_samples(body))
            ]
        return self.replies[-len(prompts) * _samples(body) :]

    def _tokenize(self, body: JsonObject) -> JsonObject:
        prompt, adds = body["prompt"], body["add_special_tokens"]
        if isinstance(prompt, str):
            return {"tokens": self.tokenizer.encode(prompt, add_special_tokens=adds).ids}
        return {"tokens": [self.tokenizer.encode(each, add_special_tokens=adds).ids for each in prompt]}

    def _detokenize(self, body: JsonObject) -> JsonObject:
        rows, skips = body["tokens"], body["skip_special_tokens"]
        return {"text": [self.tokenizer.decode(row, skip_special_tokens=skips) for row in rows]}

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
