"""GPT-2 ids: gptrs beside tiktoken, bpe, fastokens, tokenizers and gigatoken.

    make bench-tokenizer                  every table, in about 8 minutes
    make bench-tokenizer ARGS=--quick     fewer rounds, and no callgrind
    make bench-tokenizer ARGS="--only threads"

Each measurement is a process of its own (`tokenizer_worker.py`) on one processor, peers in turns.
Cold is the first encoding in it, warm the same text again. A str's UTF-8 form is made beforehand.
Two processors have a table of their own (`tokenizer_threads.py`).
"""

import argparse
import re
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import tokenizer_corpus as corpus
from table import copy_ceiling, print_header, print_table, seconds
from tokenizer_peers import OURS, PEERS
from tokenizer_runs import FailedError, Lab, environment, finished, labels, ratio
from tokenizer_threads import print_threads
from tokenizer_worker import make_utf8

import gptrs

STARTUP_BYTES = 20_000
CALLGRIND_BYTES = 4_000_000
HOSTILE_PEERS = ("tiktoken", "gigatoken batch")
HOSTILE_TIMEOUT_S = 10.0
SLOWEST_SHARE = 1 / 5
"""Of cold prose: no text may be slower."""


PARTS = ("peers", "languages", "nonsense", "threads", "start", "instructions")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and no callgrind")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some tables")
    args = parser.parse_args()
    quick = args.quick
    prose = corpus.prose()
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        file = lab.write("prose", prose)
        ceiling = f"{copy_ceiling()}; {utf8_speed(file)}"
        print_header(f"GPT-2 ids of English and code: {described(prose)}", 1, ceiling)
        tables = (
            partial(print_peers, lab, file, rounds=3 if quick else 9),
            partial(print_other_languages, lab, rounds=1 if quick else 3),
            partial(print_hostile, lab, file, rounds=1 if quick else 3),
            partial(print_threads, prose, rounds=10 if quick else 100),
            partial(print_startup, lab, prose, rounds=5 if quick else 21),
            partial(print_instructions, lab, prose),
        )
        for part, print_table_of in zip(PARTS, tables, strict=True):
            if part in args.only and not (quick and part == "instructions"):
                print_table_of()


def described(text: str) -> str:
    """How long it is, and how much of it ASCII lacks."""
    outside = sum(len(run) for run in re.findall(r"[^\x00-\x7f]+", text))
    return f"{len(text.encode()) / 1e6:.1f} MB, {outside / len(text):.2%} of it not ASCII"


def utf8_speed(file: Path) -> str:
    """What the tables leave out: Python's own work on a str that nobody has asked for UTF-8 yet."""
    text = file.read_text(encoding="utf-8")
    taken = seconds(partial(make_utf8, text))
    return f"Python makes a str's UTF-8, once and uncounted, at {len(text) / taken / 1e9:.1f} GB/s"


def print_peers(lab: Lab, file: Path, rounds: int) -> None:
    """Every peer on one text."""
    found = lab.rounds(PEERS, file, rounds=rounds, repeats=4)
    ours = found[OURS]
    if isinstance(ours, str):
        raise SystemExit(f"gptrs: {ours}")
    num_bytes, num_words = file.stat().st_size, count_words(file.read_text(encoding="utf-8"))
    wrong = other_ids(lab, file)
    rows = []
    for name, runs in found.items():
        if isinstance(runs, str):
            rows.append([labels()[name], runs])
            continue
        cold, warm = (median(getattr(run, which) for run in runs) for which in ("cold_s", "warm_s"))
        speeds = [f"{num_bytes / taken / 1e6:.1f}" for taken in (cold, warm)]
        ratios = [f"{ratio(runs, ours, which):.2f}x" for which in ("cold_s", "warm_s")]
        words = [f"{taken / num_words * 1e9:.1f}" for taken in (cold, warm)]
        memory = f"{median(run.memory_bytes for run in runs) / 1e6:.0f}"
        rows.append([labels()[name], *speeds, *ratios, *words, memory, wrong[name]])
    columns = ["", "MB/s cold", "warm", "ours is cold", "warm", "ns a word cold", "warm"]
    print_table([*columns, "MB more", "other ids"], rows)
    print(f"{num_words:,} words: pieces of GPT-2's pattern. MB more: by how much memory grew at")
    print("most in the cold run. Other ids: those that tiktoken does not have at that place.\n")


def count_words(text: str) -> int:
    """The pieces that GPT-2's pattern cuts `text` into."""
    import regex
    import tiktoken_ext.openai_public as public

    return sum(1 for _ in regex.finditer(public.r50k_pat_str, text))


def other_ids(lab: Lab, file: Path) -> dict[str, str]:
    """How many of each peer's ids are not tiktoken's, at the same place in the text."""
    tokenizer = gptrs.get_tokenizer("gpt2")
    lengths = np.array([len(tokenizer.decode_bytes([i])) for i in range(tokenizer.n_vocab)])
    counts: dict[str, str] = {}
    expected = None
    for name in PEERS:
        ids_file = lab.vocabulary / "ids.bin"
        try:
            lab.run(name, file, repeats=1, ids=ids_file)
        except FailedError:
            counts[name] = "?"
            continue
        ids = np.fromfile(ids_file, dtype="<u4").astype(np.int64)
        starts = np.cumsum(lengths[ids]) - lengths[ids]
        placed = starts * tokenizer.n_vocab + ids
        if name == "tiktoken":
            expected = placed
        counts[name] = "?" if expected is None else f"{len(np.setdiff1d(placed, expected)):,}"
    return counts


def print_other_languages(lab: Lab, rounds: int) -> None:
    """Every peer on real text that is not English."""
    text = corpus.other_languages()
    if not text:
        print("other languages: this environment has no .po files\n")
        return
    print(f"Django's messages in other languages: {described(text)}")
    print_peers(lab, lab.write("languages", text), rounds)


def print_hostile(lab: Lab, prose: Path, rounds: int) -> None:
    """Megabytes of nonsense, each cold in a process of its own, and prose beside them."""
    print("1 MB of nonsense, cold, MB/s")
    rows = []
    for label, text in corpus.hostile().items():
        file = lab.write("hostile", text)
        cells = [hostile_cell(lab, name, file) for name in HOSTILE_PEERS]
        speeds, shares = [], []
        for _ in range(rounds):
            usual = speed(lab, OURS, prose)
            speeds.append(speed(lab, OURS, file))
            shares.append(speeds[-1] / usual)
        share = median(shares)
        verdict = "" if share >= SLOWEST_SHARE else "below 1/5"
        rows.append([label, *cells, f"{median(speeds):.1f}", f"{share:.2f}", verdict])
    print_table(["", *HOSTILE_PEERS, OURS, "of our cold prose", ""], rows)


def hostile_cell(lab: Lab, name: str, file: Path) -> str:
    """A peer's speed, or what became of it: some fail, some take forever."""
    try:
        return f"{speed(lab, name, file):.1f}"
    except FailedError as error:
        return str(error)[:24]


def speed(lab: Lab, name: str, file: Path) -> float:
    """MB/s of one cold encoding."""
    run = lab.run(name, file, repeats=1, timeout_s=HOSTILE_TIMEOUT_S)
    return file.stat().st_size / run.cold_s / 1e6


def print_startup(lab: Lab, prose: str, rounds: int) -> None:
    """From starting Python to a list of the ids of 20 KB, each time a fresh process."""
    file = lab.write("startup", prose[:STARTUP_BYTES])
    setting = f"vocabulary = {str(lab.vocabulary)!r}; text = open({str(file)!r}).read(); "
    programs = {"Python alone": "pass"}
    programs |= {name: setting + peer.startup for name, peer in PEERS.items() if peer.startup}
    variables = environment(1) | {"TIKTOKEN_CACHE_DIR": str(lab.vocabulary)}
    times: dict[str, list[float]] = {name: [] for name in programs}
    failures: dict[str, str] = {}
    for _ in range(rounds + 1):
        for name, program in programs.items():
            command = [sys.executable, "-c", program]
            try:
                times[name].append(seconds(partial(finished, command, variables, 60)))
            except FailedError as error:
                failures[name] = str(error)
    rows = []
    for name, taken in times.items():
        label = labels()[name].rpartition(" ")[0] if name in PEERS else name
        if name in failures:
            rows.append([label, failures[name]])
            continue
        del taken[0]  # The first round reads files from the disk.
        pairs = zip(taken, times[OURS][-len(taken) :], strict=True)
        ratio_of_times = median(theirs / ours for theirs, ours in pairs)
        rows.append([label, f"{median(taken) * 1e3:.1f}", f"{ratio_of_times:.2f}x"])
    print("a fresh Python that imports the library and makes a list of the ids of 20 KB")
    print_table(["", "ms", "ours is"], rows)


def print_instructions(lab: Lab, prose: str) -> None:
    """Instructions that callgrind counts: two processes that differ by one encoding, subtracted."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        print("instructions per byte: needs valgrind")
        return
    file = lab.write("callgrind", prose[:CALLGRIND_BYTES])
    tool = [valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    counts = []
    for repeats in (0, 1, 2):
        done = finished([*tool, *lab.command(OURS, file, repeats)], environment(1), 600)
        counts.append(int(re.search(r"Collected : (\d+)", done.stderr)[1]))
    cold, warm = np.diff(counts) / file.stat().st_size
    print(f"instructions per byte, {CALLGRIND_BYTES / 1e6:.0f} MB under callgrind, which has no")
    print(f"AVX-512: {cold:.1f} cold, {warm:.1f} warm")


if __name__ == "__main__":
    main()
