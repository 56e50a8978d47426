"""What a finished reply has used stays with the process."""

import subprocess
import sys

FAULTS = """
import resource, sys
from espalier.router.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(200):
        bytearray(b"x" * 2_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
"""Prints how many pages the kernel had to map for 200 replies of 2 MB, one after the other."""


def page_faults(mode: str) -> int:
    ran = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
    return int(ran.stdout)


def test_memory_of_one_reply_serves_the_next() -> None:
    assert page_faults("keep") < page_faults("as it is") / 10
