"""The process that runs a program which nobody trusts: `code_sandbox.py LIMITS PROGRAM`.

A program of its own, run by path; it imports nothing of Espalier. It leaves the network, limits what the
program can take, and becomes the program. LIMITS is JSON: `cpu_s`, `memory_bytes`, `file_bytes`,
`needs_isolation`.

Enforced: no network (an empty network namespace of Linux, with no interface that is up), no sight of other
processes, limits on processor time, memory, size of a written file, open files and processes; no core dumps,
no terminal, an environment that tells nothing. Not enforced: which files may be read and written, and how
many bytes in all. Run rollouts that grade code in a container.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path

NOT_ISOLATED = 97
"""Exit status where the network cannot be left."""

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWIPC = 0x08000000
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def main() -> None:
    """Become the program, isolated and limited; exit with 97 where it cannot be isolated."""
    limits, program = json.loads(sys.argv[1]), sys.argv[2]
    if not _isolated() and limits["needs_isolation"]:
        os._exit(NOT_ISOLATED)
    child = os.fork()  # the first process in the new namespace: all that it starts ends with it
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(min(os.waitstatus_to_exitcode(status) & 0xFF, 0xFF))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for kind, value in (
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 128),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))
    os.execv(sys.executable, [sys.executable, "-I", "-B", program])  # noqa: S606  this is what it is for


def _isolated() -> bool:
    """Leave the network, and the sight of other processes; tell whether that worked."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWPID | _CLONE_NEWIPC) != 0:
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    except OSError:
        pass  # without a mapping the program runs as nobody, which is no less isolated
    return True


if __name__ == "__main__":
    main()
