"""SGLang's control calls: the paths that change a worker for all of its callers.

Balanced like other calls they would reach one worker only; the fleet's are answered by every worker.
"""

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Effect(StrEnum):
    """What the router has to know of a worker that took a control call."""

    NONE = "none"
    PAUSES = "pauses"
    RESUMES = "resumes"
    CHANGES_WEIGHTS = "changes_weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlCall:
    """One control path of SGLang's, and what it does."""

    path: str
    does: str
    methods: tuple[str, ...] = ("POST",)
    effect: Effect = Effect.NONE
    is_collective: bool = False
    """Whether workers answer only once all of them were asked (they meet in a process group): such a call
    must reach all at the same time, however many there are."""


_EITHER = ("GET", "POST")

_CALLS = (
    ControlCall(path="/pause_generation", does="Stop sampling", effect=Effect.PAUSES),
    ControlCall(path="/continue_generation", does="Sample on after a pause", effect=Effect.RESUMES),
    ControlCall(path="/flush_cache", does="Forget cached prefixes", methods=_EITHER),
    ControlCall(
        path="/update_weights_from_disk",
        does="Load weights from a folder",
        effect=Effect.CHANGES_WEIGHTS,
    ),
    ControlCall(
        path="/update_weights_from_tensor",
        does="Take weights from the request",
        effect=Effect.CHANGES_WEIGHTS,
    ),
    ControlCall(
        path="/update_weights_from_distributed",
        does="Take weights over a process group",
        effect=Effect.CHANGES_WEIGHTS,
        is_collective=True,
    ),
    ControlCall(
        path="/update_weights_from_ipc",
        does="Take weights from a process on the worker's machine",
        effect=Effect.CHANGES_WEIGHTS,
    ),
    ControlCall(path="/begin_weight_update", does="Begin an update in several parts"),
    ControlCall(
        path="/end_weight_update",
        does="End an update in several parts",
        effect=Effect.CHANGES_WEIGHTS,
    ),
    ControlCall(
        path="/init_weights_update_group",
        does="Join a process group for weights",
        is_collective=True,
    ),
    ControlCall(
        path="/destroy_weights_update_group",
        does="Leave a process group for weights",
        is_collective=True,
    ),
    ControlCall(path="/update_weight_version", does="Rename the weights", effect=Effect.CHANGES_WEIGHTS),
    ControlCall(
        path="/init_weights_send_group_for_remote_instance",
        does="Join a process group that sends weights",
        is_collective=True,
    ),
    ControlCall(
        path="/send_weights_to_remote_instance",
        does="Send weights to another instance",
        is_collective=True,
    ),
    ControlCall(path="/pull_weights", does="Pull weights (slime's workers)", effect=Effect.CHANGES_WEIGHTS),
    ControlCall(path="/post_process_weights", does="Finish weights after loading (slime's workers)"),
    ControlCall(path="/release_memory_occupation", does="Free GPU memory", methods=_EITHER),
    ControlCall(path="/resume_memory_occupation", does="Take GPU memory back", methods=_EITHER),
    ControlCall(path="/load_lora_adapter", does="Load a LoRA adapter from a folder"),
    ControlCall(path="/load_lora_adapter_from_tensors", does="Load a LoRA adapter from the request"),
    ControlCall(path="/unload_lora_adapter", does="Unload a LoRA adapter"),
    ControlCall(path="/weights_checker", does="Checksum or reset weights", methods=_EITHER),
    ControlCall(path="/slow_down", does="Slow every step down", methods=_EITHER),
    ControlCall(path="/freeze_gc", does="Freeze the garbage collector", methods=_EITHER),
    ControlCall(path="/set_internal_state", does="Change a server argument", methods=("POST", "PUT")),
    ControlCall(path="/configure_logging", does="Change what is logged", methods=_EITHER),
    ControlCall(path="/set_trace_level", does="Change what is traced", methods=_EITHER),
    ControlCall(path="/start_profile", does="Start profiling", methods=_EITHER),
    ControlCall(path="/stop_profile", does="Stop profiling", methods=_EITHER),
    ControlCall(path="/start_expert_distribution_record", does="Start recording experts", methods=_EITHER),
    ControlCall(path="/stop_expert_distribution_record", does="Stop recording experts", methods=_EITHER),
    ControlCall(path="/dump_expert_distribution_record", does="Write recorded experts out", methods=_EITHER),
    ControlCall(path="/add_external_corpus", does="Add a corpus for speculation"),
    ControlCall(path="/remove_external_corpus", does="Remove a corpus for speculation"),
)

CONTROL_CALLS: Final = MappingProxyType({call.path: call for call in _CALLS})
"""Every control call by its path."""


def control_call(path: str) -> ControlCall:
    """Return what is known of a call to `path`; nothing is expected of one that is no control call."""
    known = CONTROL_CALLS.get(path)
    return ControlCall(path=path, does="Something") if known is None else known
