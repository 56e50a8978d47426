"""The router: an HTTP server that spreads calls over SGLang workers and keeps account of them.

`app` composes it; `data_plane` takes calls in, `forwarder` leases a worker for each, `upstream` and
`connection` carry them there and back; `workers`, `health` and `policies` decide who is asked;
`worker_routes` and `fleet` are what people and frameworks steer it with.
"""

if __name__ != "espalier.router":
    raise ImportError(f"import espalier.router, not {__name__}: this folder is installed under that name")
