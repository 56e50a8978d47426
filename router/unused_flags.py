"""Flags of SGLang's router that have no meaning here, and what is so instead.

They are taken, with a warning, so that a command line of old still starts a router. Not among them is what
guards access (`--control-plane-api-keys`, JWT, client certificates for workers): who relies on that must
learn that it is not there, so those fail like any unknown flag.
"""

from collections.abc import Mapping
from typing import Final

_NO_BREAKER = "only refused connections take a worker out of rotation, never slow or failed calls"
_NO_TREE = "policies here are set up by their own flags; see --policy"
_NO_DISCOVERY = "workers join by --worker-urls or POST /workers"
_NO_TOKENIZER_CACHE = "the radix tree remembers the tokens of what it has seen"
_NO_PARSER = "workers parse; their replies pass through unchanged"
_NO_PD = "all workers are regular ones: prefill and decode workers are not told apart"
_NO_TRACE = "there is no tracing; request ids are in the logs, at the worker and in the reply"
_NO_HISTORY = "the router keeps no conversations"

UNUSED_FLAGS: Final[Mapping[str, str]] = {
    "--assignment-mode": _NO_TREE,
    "--backend": "the workers are SGLang servers",
    "--bootstrap-port-annotation": _NO_PD,
    "--bucket-adjust-interval-secs": _NO_TREE,
    "--cache-threshold": _NO_TREE,
    "--cb-failure-threshold": _NO_BREAKER,
    "--cb-success-threshold": _NO_BREAKER,
    "--cb-timeout-duration-secs": _NO_BREAKER,
    "--cb-window-duration-secs": _NO_BREAKER,
    "--chat-template": "workers apply chat templates",
    "--decode-policy": _NO_PD,
    "--decode-selector": _NO_DISCOVERY,
    "--disable-circuit-breaker": _NO_BREAKER,
    "--dp-aware": "a worker spreads calls over its data-parallel ranks itself",
    "--enable-igw": "one router serves one model",
    "--enable-trace": _NO_TRACE,
    "--eviction-interval-secs": "what is over a limit is dropped at once",
    "--history-backend": _NO_HISTORY,
    "--log-dir": "logs go to stderr; send that to a file",
    "--max-idle-secs": _NO_TREE,
    "--max-tree-size": "--middleware-arg radix_tree.max_cached_tokens=… bounds the radix tree",
    "--mcp-config-path": "the router calls no tools",
    "--model-path": "--tokenizer-path names the tokenizer; the workers have the model",
    "--otlp-traces-endpoint": _NO_TRACE,
    "--prefill-policy": _NO_PD,
    "--prefill-selector": _NO_DISCOVERY,
    "--rate-limit-tokens-per-second": "calls are limited by how many run at once",
    "--reasoning-parser": _NO_PARSER,
    "--selector": _NO_DISCOVERY,
    "--service-discovery": _NO_DISCOVERY,
    "--service-discovery-namespace": _NO_DISCOVERY,
    "--service-discovery-port": _NO_DISCOVERY,
    "--tokenizer-cache-enable-l0": _NO_TOKENIZER_CACHE,
    "--tokenizer-cache-enable-l1": _NO_TOKENIZER_CACHE,
    "--tokenizer-cache-l0-max-entries": _NO_TOKENIZER_CACHE,
    "--tokenizer-cache-l1-max-memory": _NO_TOKENIZER_CACHE,
    "--tool-call-parser": _NO_PARSER,
    "--worker-startup-check-interval": "a worker takes calls as soon as it takes connections",
    "--worker-startup-timeout-secs": "a worker takes calls as soon as it takes connections",
}
