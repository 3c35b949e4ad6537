"""What a step frees, the next one gets without asking the system."""

import json
import subprocess
import sys
import textwrap

import pytest

from gptrs.training.memory import has_glibc

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(not has_glibc(), reason="another C library")

BLOCK_BYTES = 80 << 20
PAGES = BLOCK_BYTES // resource.getpagesize()
LARGE_PAGES = BLOCK_BYTES // (2 << 20)
"""A page of NumPy's memory may be of 2 MiB."""

# In a process of its own: in a test runner's, blocks that others have freed are in the way.
MEASURE = textwrap.dedent("""
    import json, resource, threading
    import numpy as np
    from gptrs.training.memory import freed_memory_kept

    BLOCK_BYTES = 80 << 20
    found = {}

    def round_of_three():
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            np.full(BLOCK_BYTES, 1, dtype=np.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def note(name):
        found[name] = round_of_three()

    def resident_bytes():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    note("before")
    with freed_memory_kept():
        note("while kept")
        thread = threading.Thread(target=note, args=["in another thread"])
        thread.start()
        thread.join()
        kept = resident_bytes()
    found["given back"] = kept - resident_bytes()
    note("afterwards")
    try:
        with freed_memory_kept():
            raise KeyError
    except KeyError:
        note("after an error")
    print(json.dumps(found))
""")


@pytest.fixture(scope="module")
def found():
    """Page faults of writing to a large block and freeing it, for the third time."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("when", ["while kept", "in another thread"])
def test_a_block_that_was_freed_is_had_again_without_a_page_fault(found, when):
    assert found[when] < PAGES / 10


@pytest.mark.parametrize("when", ["before", "afterwards", "after an error"])
def test_otherwise_large_blocks_come_from_the_system_each_time(found, when):
    assert found[when] >= LARGE_PAGES


def test_what_was_kept_goes_back_to_the_system(found):
    assert found["given back"] > BLOCK_BYTES / 2
