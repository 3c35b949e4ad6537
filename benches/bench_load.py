"""Batches from tokens on disk: `WindowLoader` beside nanoGPT, the book's loader and bare copies.

    make bench-load                  in about half a minute
    make bench-load ARGS=--quick     fewer rounds

All take windows of the same size from the same file, on one thread; the book's loader has a text
in memory. nanoGPT's `get_batch` is written from its description: a memory map of uint16, random
places, an int64 tensor for each row and for each row of targets, stacked. The last table opens a
store of 10^12 tokens, in processes of its own. TMPDIR says where the stores are written.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from llms_from_scratch import ch02
from table import compare, copy_ceiling, print_header, print_table
from tokenizer_runs import environment, finished

import gptrs
from gptrs.text.reading import help_topics

MAX_LENGTH, BATCH_SIZE = 1024, 8
NUM_TOKENS = 100_000_000
CALLS = 1000
"""Batches a measurement."""
LARGE_TOKENS = 10**12
OPENINGS = 5
TIMEOUT_S = 120.0


def main() -> None:
    """Prints the tables; or is the process that opens the large store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds instead of nine")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.open:
        print(json.dumps(opened(args.open)))
        return
    print_header(
        f"Shuffled batches of {BATCH_SIZE} x {MAX_LENGTH}, {NUM_TOKENS / 1e6:.0f} M tokens on disk",
        1,
        f"{copy_ceiling()}; a bare copy turns as many uint16 tokens into two int64 arrays, no more",
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "train.bin"
        rng = np.random.default_rng(0)
        rng.integers(0, 50_256, NUM_TOKENS, dtype=np.uint16).tofile(file)
        store = gptrs.convert_store(file, folder / "store", to="gptrs")
        file.unlink()
        compare(
            candidates(store),
            work=CALLS * BATCH_SIZE * MAX_LENGTH,
            unit="tokens",
            rounds=3 if args.quick else 9,
        )
    with tempfile.TemporaryDirectory() as name:
        openings(Path(name))


def candidates(store: gptrs.TokenStore) -> dict[str, Callable[[], object]]:
    """What takes batches, a thousand a call."""
    tokens = np.load(store.path / "tokens-00000.npy", mmap_mode="r")
    return {
        "the book's loader": take(book()),
        "nanoGPT's get_batch": take(nanogpt(tokens)),
        "a bare copy of the same bytes": take(bare_copies(tokens)),
        "a bare copy, tokens in the cache": take(cached_copies()),
        "gptrs create_dataloader_v1(store)": take(
            endless(gptrs.create_dataloader_v1(store, BATCH_SIZE, MAX_LENGTH, MAX_LENGTH))
        ),
        "gptrs WindowLoader, prefetch=0": take(window_loader(store, prefetch=0)),
        "gptrs WindowLoader": take(window_loader(store, prefetch=2)),
    }


def take(batches: Iterator[Any]) -> Callable[[], object]:
    """A call that takes so many batches, and keeps one at a time as a training loop does."""

    def call() -> None:
        for _ in range(CALLS):
            batch = next(batches)
        del batch

    return call


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def window_loader(store: gptrs.TokenStore, prefetch: int) -> Iterator[Any]:
    epochs = 1_000_000
    return iter(gptrs.WindowLoader(store, BATCH_SIZE, MAX_LENGTH, epochs=epochs, prefetch=prefetch))


def book() -> Iterator[Any]:
    """The book's own loader, on a text that is small: it holds two tensors for each window."""
    encoding = gptrs.get_tokenizer("gpt2").as_tiktoken()
    # The book's loader asks for this by name, which would need a network.
    ch02.tiktoken.get_encoding = lambda name: encoding
    return endless(
        ch02.create_dataloader_v1(
            help_topics() * 4, batch_size=BATCH_SIZE, max_length=MAX_LENGTH, stride=MAX_LENGTH
        )
    )


def nanogpt(tokens: np.ndarray) -> Iterator[Any]:
    """`get_batch`; it does not open the file anew each time, as nanoGPT's own does."""
    length = MAX_LENGTH

    def rows(places: torch.Tensor) -> torch.Tensor:
        return torch.stack(
            [torch.from_numpy(tokens[at : at + length].astype(np.int64)) for at in places]
        )

    while True:
        places = torch.randint(len(tokens) - length, (BATCH_SIZE,))
        yield rows(places), rows(places + 1)


def bare_copies(tokens: np.ndarray) -> Iterator[Any]:
    """The file's tokens one after the other, into two arrays that are always the same."""
    tokens = tokens.view(np.ndarray)
    size = BATCH_SIZE * MAX_LENGTH
    inputs, targets = np.empty((2, size), dtype=np.int64)
    while True:
        for at in range(0, len(tokens) - size, size):
            np.copyto(inputs, tokens[at : at + size])
            np.copyto(targets, tokens[at + 1 : at + 1 + size])
            yield inputs, targets


def cached_copies() -> Iterator[Any]:
    """The same tokens again and again."""
    tokens = np.ones((2, BATCH_SIZE, MAX_LENGTH), dtype=np.uint16)
    wide = np.empty(tokens.shape, dtype=np.int64)
    while True:
        np.copyto(wide, tokens)
        yield wide


def openings(folder: Path) -> None:
    """The table of the large store: sparse files of zeros, of which one is linked many times."""
    one = folder / "one.bin"
    with one.open("wb") as file:
        file.truncate(2 << 28)
    gptrs.convert_store(one, folder / "one", to="gptrs")
    shard = folder / "one" / "tokens-00000.npy"
    size = shard.stat().st_size
    os.truncate(shard, 128)
    os.truncate(shard, size)
    store = gptrs.merge_stores([folder / "one"] * (LARGE_TOKENS // (1 << 28) + 1), folder / "large")
    command = [sys.executable, __file__, "--open", str(folder / "large")]
    runs = [
        json.loads(finished(command, environment(1), TIMEOUT_S).stdout) for _ in range(OPENINGS)
    ]
    print(f"from the path to the first batch of a store of {len(store):,} tokens, in sparse files")
    milliseconds, megabytes = (median(run[name] for run in runs) for name in ("ms", "MB"))
    print_table(
        ("", "time", "memory"), [("gptrs", f"{milliseconds:.0f} ms", f"{megabytes:.0f} MB")]
    )


def opened(path: Path) -> dict[str, float]:
    """How long the first batch took, and by how much the process grew."""
    loader = gptrs.WindowLoader  # All imports are done here.
    before = resident_bytes()
    start = time.perf_counter()
    next(iter(loader(path, BATCH_SIZE, MAX_LENGTH)))
    took = time.perf_counter() - start
    return {"ms": took * 1e3, "MB": (resident_bytes() - before) / 1e6}


def resident_bytes() -> int:
    ps = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True
    )
    return int(ps.stdout) * 1024


if __name__ == "__main__":
    main()
