"""One fresh process of `bench_tokenizer.py`: one tokenizer, one text, cold and then warm.

    tokenizer_worker.py PEER VOCABULARY TEXT --repeats N     a line of JSON: seconds, memory_bytes

The tokenizer is loaded and encodes a tiny text first. Then each encoding is timed: the first has
cold caches, the others have seen the text. Who starts this program says on how many processors.
"""

import argparse
import ctypes
import json
import sys
import time
from pathlib import Path

from tokenizer_peers import PEERS, Encode


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ways = {name: peer for name, peer in PEERS.items() if peer.load}
    parser.add_argument("peer", choices=ways)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ids", type=Path, help="where the ids go, as little-endian uint32")
    args = parser.parse_args()
    text = args.text.read_bytes().decode()
    make_utf8(text)
    encode = ways[args.peer].load(args.vocabulary)
    encode("Hello there")
    print(json.dumps(measure(encode, text, args.repeats, args.ids)))


def measure(encode: Encode, text: str, repeats: int, ids_file: Path | None) -> dict[str, object]:
    """Seconds of each encoding, and by how much memory grew at most in the first."""
    forget_peak_memory()
    bytes_before = status_bytes("VmRSS:")
    bytes_peak = bytes_before
    seconds = []
    for repeat in range(repeats):
        start = time.perf_counter()
        ids = encode(text)
        seconds.append(time.perf_counter() - start)
        if repeat == 0:
            bytes_peak = status_bytes("VmHWM:")
            if ids_file is not None:
                import numpy as np

                np.asarray(ids).astype("<u4").tofile(ids_file)
        del ids
    return {"seconds": seconds, "memory_bytes": bytes_peak - bytes_before}


def make_utf8(text: str) -> None:
    """Has Python make and keep the UTF-8 form of `text`, which is the same work for every peer."""
    as_utf8 = ctypes.pythonapi.PyUnicode_AsUTF8AndSize
    as_utf8.restype = ctypes.c_void_p
    as_utf8(ctypes.py_object(text), ctypes.byref(ctypes.c_ssize_t()))


def forget_peak_memory() -> None:
    """Sets the peak that Linux keeps of a process's memory to what it has now."""
    clear_refs = Path("/proc/self/clear_refs")
    if clear_refs.exists():
        clear_refs.write_text("5")


def status_bytes(field: str) -> int:
    """A size from Linux's description of this process; elsewhere the peak, the one there is."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
