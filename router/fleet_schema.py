"""The bodies of the fleet's endpoints, as OpenAPI tells them.

FastAPI prepares each model of each route anew, which for some sixty routes that answer alike took 70 ms at
every start. So these refer to the models that `/fleet/weights` and `/v1/rl/engine/` bring into the document.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

WORKER_SELECTION: Final = {
    "parameters": [
        {
            "name": "worker",
            "in": "query",
            "description": "Only this worker, by id or URL; may be repeated. Not passed on to the workers.",
            "schema": {"type": "array", "items": {"type": "string"}},
        }
    ]
}
"""The `openapi_extra` of a route that takes `?worker=`."""


def described(model: type[BaseModel], description: str) -> dict[str, Any]:
    """Return how OpenAPI tells of a reply whose body is a `model` that another route brings in."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    code: str


class ErrorBody(BaseModel):
    """The body of every error of the router's own."""

    error: ErrorDetail


class WorkerAnswer(BaseModel):
    """How one worker answered."""

    url: str
    status: Annotated[int, Field(description="The worker's HTTP status; 502 or 504 where it gave no answer")]
    success: Annotated[bool, Field(description="A 2xx status, and no `success: false` in the body")]
    latency_ms: float
    body: Annotated[Any, Field(description="Decoded JSON, text where it is none, null where it is empty")]
    weight_version: Annotated[
        str | None, Field(description="What the worker reports after a call that may change its weights")
    ] = None


class FailedWorker(BaseModel):
    """Why one worker failed."""

    worker_id: str
    url: str
    status: int
    error: str
    message: str


class FleetAnswer(BaseModel):
    """How the workers answered a control call."""

    total: int
    succeeded: int
    results: Annotated[dict[str, WorkerAnswer], Field(description="By worker id")]
    failed: list[FailedWorker]


class NewWeights(BaseModel):
    """Which weights all workers are to serve.

    `weight_version` is required: where it is left out, SGLang keeps the old name for the new weights, and
    nobody could tell who serves which.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_path: Annotated[str, Field(min_length=1, examples=["/models/step-12"])]
    weight_version: Annotated[str, Field(min_length=1, max_length=256, examples=["12"])]
    mode: Annotated[
        Literal["abort", "retract", "in_place"],
        Field(
            description="What becomes of generations that run: ended with what they have, begun anew with "
            "the tokens they have, or continued as they are"
        ),
    ] = "abort"
    flush_cache: Annotated[
        bool | None, Field(description="Forget cached prefixes; by default in all modes but in_place")
    ] = None
    load_format: str | None = None
    torch_empty_cache: bool | None = None
    recapture_cuda_graph: bool | None = None
    token_step: int | None = None
    manifest: Any = None


class UpdatedWorker(BaseModel):
    """Where one worker stands after an update."""

    url: str
    success: bool
    weight_version: Annotated[str | None, Field(description="What it was last known to serve")]
    may_be_paused: Annotated[bool, Field(description="It was paused, and did not confirm that it goes on")]
    latency_ms: Annotated[dict[str, float], Field(description="By step: ask, pause, update, check, continue")]
    failed_step: str | None = None
    message: str | None = None
    warning: Annotated[str | None, Field(description="What it complained of, having updated")] = None


class FailedUpdate(BaseModel):
    """Why one worker was not updated."""

    worker_id: str
    url: str
    error: str
    message: str


class UpdateAnswer(BaseModel):
    """How an update of the weights went."""

    model_config = ConfigDict(protected_namespaces=())

    total: int
    succeeded: int
    model_path: str
    weight_version: str
    mode: str
    latency_ms: float
    results: Annotated[dict[str, UpdatedWorker], Field(description="By worker id")]
    failed: list[FailedUpdate]


class ServedWeights(BaseModel):
    """What one worker says that it serves now."""

    model_config = ConfigDict(protected_namespaces=())

    url: str
    weight_version: str | None
    model_path: str | None
    is_routable: bool
    error: str | None = None


class FleetWeights(BaseModel):
    """What all workers serve."""

    newest_weight_version: str | None
    is_updating: bool
    last_update: UpdateAnswer | None
    workers: Annotated[dict[str, ServedWeights], Field(description="By worker id")]


FLEET_MODELS: Final[dict[int, tuple[type[BaseModel], str]]] = {
    200: (FleetAnswer, "All workers succeeded"),
    207: (FleetAnswer, "Some workers succeeded"),
    400: (ErrorBody, "The body of a single worker is malformed"),
    404: (ErrorBody, "There is no such worker"),
    502: (FleetAnswer, "No worker succeeded"),
    503: (ErrorBody, "There are no workers"),
}
"""What a call to the fleet is answered, by status."""

FLEET_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    status: described(*told) for status, told in FLEET_MODELS.items()
}
"""The same, as `responses` of a route."""


def failures(**reasons: str) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that can fail: `failures(_404="There is no such worker")`."""
    return {int(status[1:]): described(ErrorBody, reason) for status, reason in reasons.items()}
