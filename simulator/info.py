"""The endpoints that tell about a worker: model, server, load, tokens."""

import time
from datetime import UTC, datetime
from typing import Any

from .asgi import Reply, Request, json_reply
from .bodies import field, read_object
from .error_replies import contract_error
from .params import ValueProblem
from .requests import FormError
from .tokenizer import FOLDER, render_chat
from .worker import Worker

SGLANG_VERSION = "0.5.23"
"""The version whose behaviour is simulated."""

LOAD_SECTIONS = ("core", "memory", "speculative", "lora", "disaggregation", "queues", "all")


class InfoEndpoints:
    """Answers the calls that change nothing."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def root(self, request: Request) -> Reply:
        """Say hello."""
        await request.body()
        return json_reply("SGLang is running")

    async def model_info(self, request: Request) -> Reply:
        """Tell the model, its tokenizer and the weights' version."""
        await request.body()
        worker = self._worker
        return json_reply(
            {
                "model_path": worker.model_path,
                "served_model_name": worker.served_model_name,
                "tokenizer_path": str(FOLDER),
                "is_generation": True,
                "preferred_sampling_params": None,
                "weight_version": worker.weight_version,
                "load_format": "auto",
                "reasoning_parser": None,
                "tool_call_parser": None,
                "disaggregation_mode": "null",
                "has_image_understanding": worker.settings.image_tokens > 0,
                "has_audio_understanding": False,
                "model_type": "qwen2",
                "architectures": ["Qwen2ForCausalLM"],
            }
        )

    async def server_info(self, request: Request) -> Reply:
        """Tell the settings that a router or a framework may ask for."""
        await request.body()
        worker, settings = self._worker, self._worker.settings
        room = min(settings.context_length, settings.max_total_tokens)
        info: dict[str, Any] = {
            "model_path": worker.model_path,
            "tokenizer_path": str(FOLDER),
            "skip_tokenizer_init": settings.skip_tokenizer_init,
            "context_length": settings.context_length,
            "max_running_requests": settings.max_running_requests,
            "max_queued_requests": settings.max_queued_requests,
            "max_total_tokens": settings.max_total_tokens,
            "schedule_policy": "fcfs",
            "page_size": 1,
            "tp_size": 1,
            "pp_size": 1,
            "dp_size": 1,
            "device": "cpu",
            "random_seed": settings.seed,
            "host": settings.host,
            "port": settings.port,
            "served_model_name": worker.served_model_name,
            "weight_version": worker.weight_version,
            "stream_interval": settings.stream_interval,
            "incremental_streaming_output": settings.incremental_streaming_output,
            "disaggregation_mode": "null",
            "grammar_backend": "none",
            "enable_metrics": False,
            "status": "ready",
        }
        info["internal_states"] = [dict(info)]
        info |= {
            "max_total_num_tokens": settings.max_total_tokens,
            "max_req_input_len": room - 6,
            "version": SGLANG_VERSION,
            "frontend": "python",
        }
        return json_reply(info)

    async def loads(self, request: Request) -> Reply:
        """Tell what runs and waits."""
        await request.body()
        asked = [part.strip() for part in request.query.get("include", "all").split(",")]
        for section in asked:
            if section not in LOAD_SECTIONS:
                raise ValueProblem(
                    f"include: unknown section {section!r}; known are {', '.join(LOAD_SECTIONS)}"
                )
        now = time.time()
        return json_reply(
            {
                "timestamp": datetime.fromtimestamp(now, UTC).isoformat(),
                "version": SGLANG_VERSION,
                "accelerator": None,
                "num_accelerators": 1,
                "loads": [self._load(now, set(asked))],
            }
        )

    async def models(self, request: Request) -> Reply:
        """List the one model, or tell of it by its name."""
        await request.body()
        name = request.path.removeprefix("/v1/models").removeprefix("/")
        if not name:
            return json_reply({"object": "list", "data": [self._model()]})
        if name == self._worker.served_model_name:
            return json_reply(self._model())
        error = {
            "message": f"The model '{name}' does not exist",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
        return json_reply({"error": error}, 404)

    async def tokenize(self, request: Request) -> Reply:
        """Return the ids of a prompt, of several, or of a conversation."""
        body = await read_object(request)
        encode = self._worker.tokenizer.encode
        limit = self._worker.settings.context_length
        if body.get("messages") is not None:
            tokens = encode(render_chat(_messages(body)))
            return json_reply({"tokens": tokens, "count": len(tokens), "max_model_len": limit})
        prompt = body.get("prompt")
        if isinstance(prompt, str):
            tokens = encode(prompt)
            return json_reply({"tokens": tokens, "count": len(tokens), "max_model_len": limit})
        if not isinstance(prompt, list) or not all(isinstance(text, str) for text in prompt):
            raise FormError("string_type", "prompt: Input should be a valid string or a list of strings")
        batch = [encode(text) for text in prompt]
        return json_reply({"tokens": batch, "count": [len(ids) for ids in batch], "max_model_len": limit})

    async def detokenize(self, request: Request) -> Reply:
        """Return the text of ids, or of several lists of ids."""
        body = await read_object(request)
        tokens: list[Any] = field(body, "tokens", list)
        skip: bool = field(body, "skip_special_tokens", bool, default=True)
        rows = tokens if tokens and isinstance(tokens[0], list) else [tokens]
        for row in rows:
            if not isinstance(row, list) or not all(type(token_id) is int for token_id in row):
                raise FormError("int_type", "tokens: Input should be a valid list of integers")
            if row and not 0 <= min(row) <= max(row) < self._worker.tokenizer.size:
                return contract_error(f"tokens: ids must be in [0, {self._worker.tokenizer.size - 1}]")
        texts = [self._worker.tokenizer.decode(row, skip_special_tokens=skip) for row in rows]
        return json_reply({"text": texts if rows is tokens else texts[0]})

    def _model(self) -> dict[str, Any]:
        worker = self._worker
        return {
            "id": worker.served_model_name,
            "object": "model",
            "created": int(worker.started_at),
            "owned_by": "sglang",
            "root": worker.served_model_name,
            "parent": None,
            "max_model_len": worker.settings.context_length,
        }

    def _load(self, now: float, sections: set[str]) -> dict[str, Any]:
        settings, load = self._worker.settings, self._worker.scheduler.load()
        told: dict[str, Any] = {
            "timestamp": now,
            "dp_rank": 0,
            "num_running_reqs": load.running,
            "num_waiting_reqs": load.waiting,
            "num_waiting_uncached_tokens": load.waiting_tokens,
            "num_used_tokens": load.used_tokens,
            "num_total_tokens": load.used_tokens + load.waiting_tokens,
            "num_active_tokens": load.used_tokens + load.waiting_tokens,
            "num_prealloc_ready_tokens": 0,
            "max_total_num_tokens": settings.max_total_tokens,
            "max_running_requests": settings.max_running_requests,
            "token_usage": round(load.used_tokens / settings.max_total_tokens, 4),
            "gen_throughput": 0.0,
            "cache_hit_rate": 0.0,
            "utilization": 0.0,
            "total_prefill_uncached_tokens": 0,
            "total_prefill_busy_us": 0,
            "decode_moments": [0.0] * 6,
        }
        if sections & {"memory", "all"}:
            told["memory"] = {
                "weight_gb": 0.0,
                "kv_cache_gb": 0.0,
                "graph_gb": 0.0,
                "token_capacity": settings.max_total_tokens,
            }
        if sections & {"disaggregation", "all"}:
            told["disaggregation"] = {
                "mode": "null",
                "prefill_bootstrap_queue_reqs": 0,
                "prefill_inflight_queue_reqs": 0,
                "decode_prealloc_queue_reqs": 0,
                "decode_transfer_queue_reqs": 0,
                "decode_retracted_queue_reqs": 0,
                "kv_transfer_speed_gb_s": 0.0,
                "kv_transfer_latency_ms": 0.0,
            }
        if sections & {"queues", "all"}:
            told["queues"] = {
                "waiting": load.waiting,
                "grammar": 0,
                "paused": 0,
                "retracted": 0,
                "prealloc_ready": 0,
            }
        return told


def _messages(body: dict[str, Any]) -> list[tuple[str, str]]:
    messages: list[Any] = field(body, "messages", list)
    turns: list[tuple[str, str]] = []
    for message in messages:
        if not isinstance(message, dict):
            raise FormError("dict_type", "messages: Input should be a list of dictionaries")
        turns.append((field(message, "role", str), field(message, "content", str)))
    return turns
