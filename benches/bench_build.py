"""Text to a token store: gptrs beside its bare tokenizer, nanoGPT's way and the book's dataset.

    make bench-build                      100 MB of text, in about 4 minutes
    make bench-build ARGS=--quick         10 MB, one round
    make bench-build ARGS="--memory 10"   the most memory that a build of 10 GB of prose takes

Each measurement is a process of its own, in turns. The text is what packages say of themselves and
Python's own sources, each file once: as one text file, as JSON Lines, and as a file a document.
TMPDIR says where these and the stores are written; what the speeds count is the text alone.
"""

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tokenizer_corpus as corpus
from table import copy_ceiling, print_header, print_table, seconds
from tokenizer_runs import environment, finished, processors
from tokenizer_worker import forget_peak_memory, make_utf8, status_bytes

import gptrs

MEGABYTES, QUICK_MEGABYTES = 100, 10
TIMEOUT_S = 600.0
MEMMAP_BATCHES = 1024
BARE, NANOGPT, BOOK = "the bare tokenizer", "nanoGPT's way", "the book's GPTDatasetV1"
OURS_TEXT, OURS_ROWS, OURS_FILES = "gptrs: a text file", "gptrs: JSON Lines", "gptrs: many files"


@dataclass(frozen=True)
class Run:
    """What one process measured."""

    seconds: float
    num_tokens: int
    memory_bytes: int
    """By how much it grew at most; of processes that it started nothing is known."""
    peak_bytes: int
    """The most that it had, Python and NumPy too."""


def main() -> None:
    """Prints the tables; or is one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_MEGABYTES} MB, one round")
    parser.add_argument("--memory", type=float, metavar="GB", help="only the memory that it takes")
    parser.add_argument("--run", nargs=3, metavar=("WAY", "FOLDER", "THREADS"))
    args = parser.parse_args()
    if args.run:
        way, folder, threads = args.run
        print(json.dumps(measure(WAYS[way], Path(folder), int(threads))))
        return
    with tempfile.TemporaryDirectory(prefix="gptrs-bench-") as name:
        if args.memory:
            print_memory(Path(name), int(args.memory * 1e9))
            return
        megabytes, rounds = (QUICK_MEGABYTES, 1) if args.quick else (MEGABYTES, 5)
        num_bytes, num_documents = write_corpus(Path(name), megabytes * 1_000_000)
        print_header(
            f"text to a store: {num_bytes / 1e6:.1f} MB of English and code, "
            f"{num_documents:,} documents",
            2,
            copy_ceiling(),
        )
        print_builds(Path(name), num_bytes, rounds)
        # Once: a minute, and 3 GB of windows.
        print_book(Path(name), num_bytes)


def write_corpus(folder: Path, num_bytes: int) -> tuple[int, int]:
    """The same texts in each form, `num_bytes` where there are so many; bytes, documents."""
    found, done = 0, set()
    (folder / "files").mkdir()
    with (folder / "text.txt").open("wb") as text, (folder / "rows.jsonl").open("w") as rows:
        for document in corpus.prose_files():
            if found >= num_bytes:
                break
            # A written-out end-of-text is left out: how each way takes it is not what is measured.
            document = document.replace(corpus.END_OF_TEXT, "")
            if not document or document in done:
                continue
            encoded = document.encode()
            (folder / "files" / f"{len(done):06}.txt").write_bytes(encoded)
            text.write(encoded)
            rows.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
            done.add(document)
            found += len(encoded)
    (folder / "small.txt").write_bytes(b"Hello there")
    return found, len(done)


def print_builds(folder: Path, num_bytes: int, rounds: int) -> None:
    """Every form of the input on one thread and on two, and the peers on as many."""
    for threads in (1, 2):
        found = in_turns([BARE, NANOGPT, OURS_TEXT, OURS_FILES, OURS_ROWS], folder, threads, rounds)
        rows = [
            [
                name,
                f"{num_bytes / median(run.seconds for run in runs) / 1e6:.1f}",
                f"{times(found[BARE], runs):.2f}",
                f"{times(found[NANOGPT], runs):.2f}x",
                f"{median(run.memory_bytes for run in runs) / 1e6:.0f}",
            ]
            for name, runs in found.items()
        ]
        print(f"{threads} thread{'s' * (threads > 1)}")
        print_table(["", "MB/s", "of the bare tokenizer", "nanoGPT's way", "MB more"], rows)
        counts = {name: found[name][0].num_tokens for name in (NANOGPT, OURS_ROWS, OURS_FILES)}
        if len(set(counts.values())) > 1:
            raise SystemExit(f"the ways do not agree on the number of tokens: {counts}")


def print_book(folder: Path, num_bytes: int) -> None:
    """The book's dataset and a build of the same text, on one thread."""
    found = {name: runs[0] for name, runs in in_turns([BOOK, OURS_TEXT], folder, 1, 1).items()}
    ours = found[OURS_TEXT]
    rows = [
        [
            name,
            f"{num_bytes / run.seconds / 1e6:.1f}",
            f"{run.seconds / ours.seconds:.1f}x",
            f"{run.memory_bytes / 1e6:.0f}",
            f"{run.memory_bytes / ours.memory_bytes:.0f}x",
        ]
        for name, run in found.items()
    ]
    print("the book's dataset, whose windows stay in memory, 1 thread")
    print_table(["", "MB/s", "ours is", "MB more", "of ours"], rows)


def in_turns(names: list[str], folder: Path, threads: int, rounds: int) -> dict[str, list[Run]]:
    """Every way's runs, each in a fresh process on so many processors."""
    found: dict[str, list[Run]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, runs in found.items():
            command = [sys.executable, __file__, "--run", name, str(folder), str(threads)]
            with processors(threads):
                output = finished(command, environment(threads), TIMEOUT_S).stdout
            runs.append(Run(**json.loads(output.splitlines()[-1])))
    return found


def times(theirs: list[Run], ours: list[Run]) -> float:
    """How many times ours is faster: the median of the ratios round by round."""
    pairs = zip(theirs, ours, strict=True)
    return median(their.seconds / our.seconds for their, our in pairs)


def measure(
    prepare: Callable[..., Callable[[], int]], folder: Path, threads: int
) -> dict[str, Any]:
    """One run in this process, after whatever the way does only once."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        run = prepare(folder, Path(out), threads)
        counts: list[int] = []
        forget_peak_memory()
        before = status_bytes("VmRSS:")
        taken = seconds(lambda: counts.append(run()))
        peak = status_bytes("VmHWM:")
    return asdict(Run(taken, counts[0], peak - before, peak))


def bare(folder: Path, out: Path, threads: int) -> Callable[[], int]:
    """The text in memory becomes an array of ids."""
    text = (folder / "text.txt").read_bytes().decode()
    make_utf8(text)
    tokenizer = gptrs.get_tokenizer("gpt2")
    tokenizer.encode_to_numpy("Hello there")
    return lambda: len(tokenizer.encode_to_numpy(text, threads=threads))


def store(form: str, folder: Path, out: Path, threads: int) -> Callable[[], int]:
    """Files become a store, in another folder."""
    gptrs.build_store(folder / "small.txt", out / "small", threads=1)  # Imports what it needs.
    return lambda: len(gptrs.build_store(folder / form, out / "store", threads=threads))


def nanogpt(folder: Path, out: Path, threads: int) -> Callable[[], int]:
    """`prepare.py` as it is described: tiktoken on each document, then a memmap in 1,024 batches.

    In its favour: no `datasets` library between the two, and the ids travel as arrays.
    """
    encoding = gptrs.get_tokenizer("gpt2").as_tiktoken()

    def run() -> int:
        with (folder / "rows.jsonl").open(encoding="utf-8") as lines:
            documents = [json.loads(line)["text"] for line in lines]
        encode = partial(ids_of_document, encoding)
        if threads == 1:
            ids = list(map(encode, documents))
        else:
            with multiprocessing.Pool(threads, set_encoding, [encoding]) as pool:
                ids = pool.map(ids_in_process, documents, chunksize=32)
        num_tokens = sum(map(len, ids))
        array = np.memmap(out / "train.bin", dtype=np.uint16, mode="w+", shape=(num_tokens,))
        filled = 0
        for batch in range(MEMMAP_BATCHES):
            first, last = (len(ids) * edge // MEMMAP_BATCHES for edge in (batch, batch + 1))
            if first < last:
                tokens = np.concatenate(ids[first:last])
                array[filled : filled + len(tokens)] = tokens
                filled += len(tokens)
        array.flush()
        return num_tokens

    encode_once = ids_of_document(encoding, "Hello there")
    assert len(encode_once) == 3
    return run


def ids_of_document(encoding: Any, text: str) -> np.ndarray:
    """A document's ids and the end-of-text."""
    return np.array([*encoding.encode_ordinary(text), encoding.eot_token], dtype=np.uint16)


def set_encoding(encoding: Any) -> None:
    """For a process of the pool: what it encodes with."""
    global pool_encoding
    pool_encoding = encoding


def ids_in_process(text: str) -> np.ndarray:
    """`ids_of_document` in a process of the pool."""
    return ids_of_document(pool_encoding, text)


def book(folder: Path, out: Path, threads: int) -> Callable[[], int]:
    """Windows of 256 tokens, 128 apart, as the book's loader makes them; they stay in memory."""
    import torch
    from llms_from_scratch import ch02

    torch.set_num_threads(threads)
    text = (folder / "text.txt").read_bytes().decode()
    encoding = gptrs.get_tokenizer("gpt2").as_tiktoken()
    datasets = [ch02.GPTDatasetV1("Hello there", encoding, max_length=1, stride=1)]

    def run() -> int:
        datasets.append(ch02.GPTDatasetV1(text, encoding, max_length=256, stride=128))
        return len(datasets[-1])

    return run


def prose_in_pipe(folder: Path, out: Path, threads: int) -> Callable[[], int]:
    """Standard input becomes a store, with a document after each empty line."""
    return lambda: len(gptrs.build_store("-", out / "store", split_on="\n\n", threads=threads))


WAYS: dict[str, Callable[..., Callable[[], int]]] = {
    BARE: bare,
    NANOGPT: nanogpt,
    BOOK: book,
    OURS_TEXT: partial(store, "text.txt"),
    OURS_ROWS: partial(store, "rows.jsonl"),
    OURS_FILES: partial(store, "files"),
    "pipe": prose_in_pipe,
}


def print_memory(folder: Path, num_bytes: int) -> None:
    """Builds from a pipe on every processor, and prints the process's peak."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    command = [sys.executable, __file__, "--run", "pipe", str(folder), str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for block in generated_prose(num_bytes):
            process.stdin.write(block)
        process.stdin.close()
        output = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"the build failed: exit status {process.returncode}")
    found = Run(**json.loads(output.splitlines()[-1]))
    print(f"{num_bytes / 1e9:.1f} GB of prose through a pipe, {threads} threads")
    print(f"{found.num_tokens:,} tokens, {num_bytes / found.seconds / 1e6:.1f} MB/s")
    print(f"peak memory: {found.peak_bytes / 1e6:.0f} MB")


def generated_prose(num_bytes: int) -> Iterator[bytes]:
    """Sentences of the help topics in an order that is drawn anew for each 64 KB."""
    draw = random.Random(50257)
    sentences = [f"{part}. ".encode() for part in corpus.prose()[:4_000_000].split(". ")]
    while num_bytes > 0:
        document = b"".join(draw.choices(sentences, k=700)) + b"\n\n"
        yield document
        num_bytes -= len(document)


if __name__ == "__main__":
    main()
