"""nginx in two parts: the static worker that every router has behind it, and a proxy, the limit to reach."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from .processes import SEARCH_PATH, Running, running
from .replies import stream_events, whole_reply
from .scenarios import Scenario

EVENT_GAP_S: Final = 0.001
"""Between two events of a stream: 64 streams then offer 64,000 events/s, more than one core relays."""

MAX_WORD_BYTES: Final = 2048
"""nginx takes words of up to 4,096 bytes in its configuration."""

ECHO_MODULES: Final = (
    Path("/usr/lib/nginx/modules/ngx_http_echo_module.so"),
    Path("/usr/share/nginx/modules/ngx_http_echo_module.so"),
)
"""Where the module lies that writes a reply in pieces; Debian's nginx-light brings it."""

_MAIN = """
{load}
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log;
events {{ worker_connections 8192; multi_accept on; }}
http {{
  access_log off;
  server_tokens off;
  etag off;
  max_ranges 0;
  default_type application/json;
  client_body_temp_path {folder}/bodies;
  proxy_temp_path {folder}/proxied;
  client_body_buffer_size 64k;
  keepalive_requests 1000000000;
  keepalive_timeout 300s;
  open_file_cache max=100;
  add_header Last-Modified "";
  {body}
}}
"""

_WORKER = """
  sendfile off;
  output_buffers 2 1m;
  root {folder}/files;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /generate {{ {generate} }}
    location / {{ try_files $uri =404; }}
  }}
"""

_WHOLE = "error_page 405 =200 /reply.json; try_files /reply.json =404;"
"""nginx answers 405 to a POST for a file; the error page makes that the file itself."""

_PROXY = """
  upstream worker {{ server 127.0.0.1:{worker_port}; keepalive 2048; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://worker;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_buffer_size {buffer_kib}k;
      proxy_buffers 8 {buffer_kib}k;
      proxy_busy_buffers_size {busy_kib}k;
    }}
  }}
"""


def echo_module() -> Path | None:
    """Return nginx's echo module, or None where it is not installed: then nothing can be streamed."""
    return next((path for path in ECHO_MODULES if path.is_file()), None)


def expected_body(scenario: Scenario) -> bytes:
    """Return what the static worker answers to `/generate`."""
    if scenario.is_streamed:
        return b"".join(stream_events(scenario.tokens))
    return whole_reply(scenario.tokens)


@contextlib.contextmanager
def static_worker(
    scenario: Scenario, *, port: int, answers: Mapping[str, bytes], core: int, folder: Path
) -> Iterator[Running]:
    """Run a worker that answers every `/generate` with the same reply.

    `answers` has the bodies of its other paths.
    """
    for path, content in {**answers, "/reply.json": whole_reply(scenario.tokens)}.items():
        file = folder / "files" / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    generate = _echoed(stream_events(scenario.tokens)) if scenario.is_streamed else _WHOLE
    body = _WORKER.format(folder=folder, port=port, generate=generate)
    with running(_command(folder, body), core=core, log=folder / "nginx.log") as process:
        yield process


def proxy_command(scenario: Scenario, *, port: int, worker_port: int, folder: Path) -> list[str]:
    """Return the command that runs nginx as a proxy in front of a worker."""
    buffer_kib = 256 if scenario.tokens > 1024 and not scenario.is_streamed else 64
    ports = {"port": port, "worker_port": worker_port}
    return _command(folder, _PROXY.format(**ports, buffer_kib=buffer_kib, busy_kib=2 * buffer_kib))


def _command(folder: Path, body: str) -> list[str]:
    nginx = shutil.which("nginx", path=SEARCH_PATH)
    assert nginx is not None
    module = echo_module()
    load = f"load_module {module};" if module is not None else ""
    config = folder / "nginx.conf"
    config.write_text(_MAIN.format(load=load, folder=folder, body=body))
    return [nginx, "-c", str(config)]


def _echoed(events: list[bytes]) -> str:
    """Return directives that write `events` one after the other, with a pause between two."""
    lines = ["default_type text/event-stream;"]
    for event in events:
        text = event.decode()
        words = [text[at : at + MAX_WORD_BYTES] for at in range(0, len(text), MAX_WORD_BYTES)]
        lines += ["echo -n -- '{}';".format(word.replace("\n", "\\n")) for word in words]
        lines += ["echo_flush;", f"echo_sleep {EVENT_GAP_S};"]
    return "\n".join(lines[:-1])
