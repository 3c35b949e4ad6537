"""A process of `bench_native.py`: one library with one model, which generates when it is told to.

    native_worker.py PRECISION PEER FOLDER THREADS

Lines of JSON. The first one it writes: what loading and the first token took. Then for each line
{"prompts": [[id, ...], ...], "num_new": n, "repeats": r} one {"seconds": of one, "tokens": [...]}.
"""

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path

from native_peers import COMPILED, COMPILED_NAME, PEERS
from tokenizer_worker import forget_peak_memory, status_bytes

FIRST_PROMPT = list(range(32))


def main() -> None:
    """Answers until its input ends."""
    precision, name, folder, threads = sys.argv[1:]
    peer = COMPILED[precision] if name == COMPILED_NAME else PEERS[precision][name]
    # Libraries print what they like; the answers keep a channel of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in peer.imports.split(", "):
        import_module(module)
    forget_peak_memory()
    before = status_bytes("VmRSS:")
    start = time.perf_counter()
    generate = peer.load(Path(folder), int(threads))
    loaded = time.perf_counter()
    generate([FIRST_PROMPT], 1)
    first = time.perf_counter()
    generate([FIRST_PROMPT], 32)
    say = {"load_s": loaded - start, "first_s": first - loaded}
    say["memory_bytes"] = status_bytes("VmHWM:") - before
    print(json.dumps(say), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["repeats"] > 1:
            # What is in the caches is who ran before's.
            generate(asked["prompts"], asked["num_new"])
        start = time.perf_counter()
        for _ in range(asked["repeats"]):
            tokens = generate(asked["prompts"], asked["num_new"])
        seconds = (time.perf_counter() - start) / asked["repeats"]
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=answers, flush=True)


if __name__ == "__main__":
    main()
