"""A simulated SGLang worker: the HTTP API of SGLang 0.5.23 without a model, for demos, tests and load tests.

What it says is a pure function of (prompt ids, seed, weight version); the log-probability of a token is a
pure function of (ids before it, the token, weight version). So a test can check every token that a router
recorded:

    from espalier.simulator import token_logprob
    token_logprob(prompt_ids + output_ids[:5], output_ids[5], "default")

`app.create_app` makes the ASGI application, `server.run` serves it, `espalier worker` is the command.
"""

if __name__ != "espalier.simulator":
    raise ImportError(f"import espalier.simulator, not {__name__}: this folder is installed under that name")

from .sampling import LogprobState, token_logprob
from .settings import WorkerSettings

__all__ = ["LogprobState", "WorkerSettings", "token_logprob"]
