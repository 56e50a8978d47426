"""The router: an HTTP server that spreads calls over SGLang workers and keeps account of them.

A call: `data_plane` takes it in, `forwarder` leases a worker, `upstream` and `connection` carry it there and
back. Who is asked: `workers`, `health`, `prober`, `policies`. What people and frameworks steer it with:
`worker_routes`, `fleet`, `weights`, `engine_gate`, `aggregates`, `status_routes`. `app` puts it together from
`settings`; `server` runs it.
"""

if __name__ != "espalier.router":
    raise ImportError(f"import espalier.router, not {__name__}: this folder is installed under that name")
