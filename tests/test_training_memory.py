"""What a step frees, the next one gets without asking the system."""

import threading

import numpy as np
import pytest

from gptrs.training.memory import freed_memory_kept, has_glibc

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(not has_glibc(), reason="another C library")

BLOCK_BYTES = 80 << 20
PAGES = BLOCK_BYTES // resource.getpagesize()


def page_faults_of_a_round():
    """Of writing to a large block and freeing it, for the third time."""
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.full(BLOCK_BYTES, 1, dtype=np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_a_block_that_was_freed_is_had_again_without_a_page_fault():
    with freed_memory_kept():
        assert page_faults_of_a_round() < PAGES / 10


def test_so_it_is_in_another_thread():
    found = []
    with freed_memory_kept():
        thread = threading.Thread(target=lambda: found.append(page_faults_of_a_round()))
        thread.start()
        thread.join()
    assert found[0] < PAGES / 10


def test_afterwards_large_blocks_come_from_the_system_again():
    with freed_memory_kept():
        page_faults_of_a_round()
    # A page of NumPy's memory may be of 2 MiB.
    assert page_faults_of_a_round() >= BLOCK_BYTES // (2 << 20)


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_what_was_kept_goes_back_to_the_system():
    with freed_memory_kept():
        page_faults_of_a_round()
        kept = resident_bytes()
    assert resident_bytes() < kept - BLOCK_BYTES / 2


def test_it_ends_with_an_error_too():
    with pytest.raises(KeyError), freed_memory_kept():
        raise KeyError
    assert page_faults_of_a_round() >= BLOCK_BYTES // (2 << 20)
