"""Greedy decoding on the CPU: the native engine beside its ceiling, its peers and our torch engine.

Run by `make bench-native`; ARGS="--quick" shortens it, ARGS="--only decode --threads 2" picks:

    ceiling   what `ceiling.c` reaches, and whether it can be trusted
    decode    tokens/s for one prompt and for eight, and a prompt of 1,000 tokens
    start     loading, the first token, memory: a fresh process each time
    small     models of which a token takes microseconds

All peers have the same random weights, with an output layer of its own, and the same prompts.
"then" counts the tokens after the first one, which is what the ceiling bounds; the other rates are
those of a whole call.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import native_ceiling
from native_ceiling import NUMBER_BYTES, VALID, Ceiling, FailedError, Found
from native_environment import PYTHON
from native_models import GPT2, SMALL, TINY, Shape
from native_peers import COMPILED, COMPILED_NAME, OURS, PEERS
from native_runs import Lab, Results, Task, peer, rounds_of
from table import copy_ceiling, print_header, print_table

PARTS = ("ceiling", "decode", "start", "small")
BATCH_SIZE, LONG_PROMPT = 8, 1000
CEILING = "the ceiling"
NONE = "-"
# What llama.cpp's q8_0 reads for a weight: blocks of 32 have a scale of two bytes.
LLAMA_BYTES = {
    ("float32", "llama.cpp"): 4.0,
    ("bfloat16", "llama.cpp"): 2.0,
    ("int8", "llama.cpp q8_0"): 34 / 32,
}


@dataclass
class Bench:
    """What all parts share."""

    args: argparse.Namespace
    lab: Lab
    ceiling: Ceiling | None
    found: dict[tuple[Shape, str, int], Found | None] = field(default_factory=dict)

    def ceiling_of(self, shape: Shape, precision: str, threads: int) -> Found | None:
        """The ceiling, looked for once."""
        if self.ceiling is None:
            return None
        key = (shape, precision, threads)
        if key not in self.found:
            try:
                self.found[key] = self.ceiling.find(*key)
            except FailedError as error:  # A busy machine: threads that wait for each other.
                print(f"no ceiling of {shape.name}: {error}")
                self.found[key] = None
        return self.found[key]


@dataclass
class Measured:
    """One group of peers: a precision, a model, a number of threads."""

    results: dict[str, Results]
    failures: dict[str, str]
    ceilings: list[float]
    """Tokens/s of the ceiling in each round."""
    waits_us: list[float]
    """What the ceiling's barriers took in each round: microseconds a token."""

    def seconds(self, name: str, task: str) -> list[float] | None:
        """Of each round; None where there are none."""
        result = self.results.get(name)
        return None if result is None else result.seconds.get(task)

    @property
    def ours(self) -> str:
        """What the others are compared with: the native engine, the torch engine where it fails."""
        return OURS if OURS in self.results else "gptrs torch"

    def ours_is(self, name: str, task: str) -> str:
        """How many times ours is faster: the median of the rounds' ratios."""
        theirs, ours = self.seconds(name, task), self.seconds(self.ours, task)
        if theirs is None or ours is None:
            return NONE
        return f"{median(a / b for a, b in zip(theirs, ours, strict=False)):.2f}x"

    def then(self, name: str, num_new: int) -> list[float] | None:
        """Tokens/s after the first token, of each round."""
        all_s, first_s = self.seconds(name, "one"), self.seconds(name, "first")
        if all_s is None or first_s is None:
            return None
        pairs = zip(all_s, first_s, strict=False)
        return [(num_new - 1) / (a - b) for a, b in pairs if a > b] or None


def main() -> None:
    """Prints the tables."""
    args = _arguments()
    warnings.filterwarnings("ignore")
    with ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        print_header(
            f"124M parameters, untied, prompt {args.prompt}, {args.new_tokens} new tokens, greedy",
            max(args.threads),
            f"below; {copy_ceiling()}",
        )
        bench = Bench(args, Lab(folder, args.python), _ceiling(folder, args))
        if "ceiling" in args.only:
            print_ceilings(bench)
        shapes = [GPT2] * ("decode" in args.only) + [SMALL, TINY] * ("small" in args.only)
        for shape in shapes:
            for threads in args.threads:
                for precision in args.precisions:
                    print_decode(bench, shape, precision, threads)
        if "start" in args.only:
            print(f"a fresh process, {_threads(max(args.threads))}; memory on top of the imports\n")
            for precision in args.precisions:
                print_start(bench, precision)


def print_ceilings(bench: Bench) -> None:
    """What ceiling.c reaches, beside other ways to read as many bytes."""
    if bench.ceiling is None:
        return
    rows = []
    for shape in [GPT2] + [SMALL, TINY] * ("small" in bench.args.only):
        for precision in bench.args.precisions:
            for threads in bench.args.threads:
                found = bench.ceiling_of(shape, precision, threads)
                name = f"{shape.name}, {precision}, {_threads(threads)}"
                if found is not None:
                    rows.append(native_ceiling.row(name, found, shape, precision))
    print_table(native_ceiling.COLUMNS, rows)


def print_decode(bench: Bench, shape: Shape, precision: str, threads: int) -> None:
    """Tokens/s of one group, and the ceiling's in the same minutes."""
    found = bench.ceiling_of(shape, precision, threads)
    measured = measure(bench, shape, precision, threads)
    is_small = shape is not GPT2
    columns = ["tokens/s", "batch 1", "ours is", "then", "of the ceiling"]
    columns += ["us a token" if is_small else "first, ms"]
    columns += [f"batch {BATCH_SIZE}", "ours is"]
    columns += [] if is_small else [f"prompt {LONG_PROMPT:,}", "ours is"]
    rows = []
    print(f"{shape.name}, {precision}, {_threads(threads)}")
    if measured.ceilings:
        rate = median(measured.ceilings)
        own = [NONE, _rate(1 / rate), "100 %", f"{1e6 / rate:.1f}" if is_small else NONE]
        rows.append([CEILING, NONE, *own, *[NONE] * (len(columns) - 6)])
    for name in _names(bench.args, precision, threads, shape):
        if name in measured.results:
            rows.append(_decode_row(bench.args, measured, name, is_small=is_small))
        else:
            rows.append([name, NONE, measured.failures[name]])
    print_table(columns, rows)
    if found is not None:
        _print_check(bench.args, measured, precision, shape)


def _decode_row(
    args: argparse.Namespace, measured: Measured, name: str, *, is_small: bool
) -> list[str]:
    def cells(task: str, num_tokens: int) -> list[str]:
        seconds = measured.seconds(name, task)
        rate = NONE if seconds is None else _rate(median(seconds) / num_tokens)
        return [rate, measured.ours_is(name, task)]

    then, first_s = measured.then(name, args.new_tokens), measured.seconds(name, "first")
    of_it, one = NONE, NONE
    if then is not None:
        # The ceiling ran before each round, and the warm-up.
        pairs = zip(then, measured.ceilings[1:], strict=False)
        of_it = f"{median(own / most for own, most in pairs):.0%}" if measured.ceilings else NONE
        one = f"{1e6 / median(then):.1f}" if is_small else f"{1e3 * median(first_s):.0f}"
    then_rate = NONE if then is None else _rate(1 / median(then))
    row = [name, *cells("one", args.new_tokens), then_rate, of_it.replace("%", " %"), one]
    row += cells("many", BATCH_SIZE * args.new_tokens)
    return row if is_small else row + cells("prompt", LONG_PROMPT)


def _print_check(
    args: argparse.Namespace, measured: Measured, precision: str, shape: Shape
) -> None:
    """Whether llama.cpp reads more than the ceiling; how quickly threads meet; equal tokens."""
    for (own, name), num_bytes in LLAMA_BYTES.items():
        then = measured.then(name, args.new_tokens) if own == precision else None
        if then is not None:
            reads = median(then) * num_bytes * shape.read_weights / 1e9
            most = median(measured.ceilings) * NUMBER_BYTES[precision] * shape.read_weights / 1e9
            verdict = "" if most >= VALID * reads else ": the ceiling is too low"
            print(f"{name} reads {reads:.1f} GB/s, the ceiling {most:.1f}{verdict}")
    low, high = min(measured.waits_us), max(measured.waits_us)
    print(f"a token's barriers take {median(measured.waits_us):.1f} us ({low:.1f} to {high:.1f})")
    if precision == "float32":
        reference = measured.results.get(measured.ours)
        for name, result in measured.results.items():
            if reference is not None and name != measured.ours:
                print(f"{name}: {_agreement(result, reference)} the tokens of {measured.ours}")
    print()


def _agreement(result: Results, reference: Results) -> str:
    """How many sequences are the same, and where the first difference is."""
    same, places = [], []
    for task, rows in result.tokens.items():
        for row, expected in zip(rows, reference.tokens[task], strict=True):
            same.append(row == expected)
            pairs = enumerate(zip(row, expected, strict=False))
            places += [place for place, (one, other) in pairs if one != other][:1]
    if all(same):
        return "exactly"
    first = f"token {min(places)}" if places else "their lengths"
    return f"{sum(same)} of {len(same)} sequences, the first difference at {first}, have"


def measure(bench: Bench, shape: Shape, precision: str, threads: int) -> Measured:
    """Runs one group in turns; each peer in a process of its own."""
    args, failures, workers = bench.args, {}, {}
    found = bench.ceiling_of(shape, precision, threads)
    ceilings: list[float] = []
    waits_us: list[float] = []

    def run_ceiling() -> None:
        if found is not None:
            ceilings.append(bench.ceiling.rate(found, shape, precision, threads))
            waits_us.append(bench.ceiling.waits_us(shape, threads))

    with ExitStack() as stack:
        for name in _names(args, precision, threads, shape):
            try:
                worker = bench.lab.start(shape, precision, name, threads)
            except FailedError as error:
                failures[name] = str(error)
                continue
            workers[name] = (stack.enter_context(worker), peer(precision, name))
        tasks = _tasks(args, shape)
        results, more = rounds_of(workers, tasks, args.rounds, run_ceiling)
    return Measured(results, failures | more, ceilings, waits_us)


def print_start(bench: Bench, precision: str) -> None:
    """Loading, the first token and memory, each time in a fresh process."""
    threads = max(bench.args.threads)
    names = [name for name in _names(bench.args, precision, 0, GPT2) if name != COMPILED_NAME]
    starts: dict[str, list[dict[str, float]] | str] = {name: [] for name in names}
    for _ in range(min(3, bench.args.rounds)):
        for name, own in starts.items():
            if isinstance(own, list):
                try:
                    with bench.lab.start(GPT2, precision, name, threads) as worker:
                        own.append(worker.start)
                except FailedError as error:
                    starts[name] = str(error)
    weights = GPT2.all_weights * NUMBER_BYTES[precision]
    columns = [precision, "load, s", "first token, s", "MB at most", "above the weights"]
    rows = []
    for name, own in starts.items():
        if isinstance(own, str):
            rows.append([name, NONE, own])
            continue
        load_s, first_s, peak = (
            median(start[key] for start in own) for key in ("load_s", "first_s", "memory_bytes")
        )
        # Nobody keeps everything in int8.
        above = f"{(peak - weights) / 1e6:,.0f}" if precision != "int8" else NONE
        rows.append([name, f"{load_s:.2f}", f"{first_s:.3f}", f"{peak / 1e6:,.0f}", above])
    print_table(columns, rows)


def _names(args: argparse.Namespace, precision: str, threads: int, shape: Shape) -> list[str]:
    """The group's peers; the book's loop takes minutes, so it runs once, with most threads."""
    names = list(PEERS[precision])
    if args.compiled and precision in COMPILED:
        names.insert(-1, COMPILED_NAME)
    with_book = args.book and threads == max(args.threads) and shape is GPT2
    return [name for name in names if with_book or not peer(precision, name).is_slow]


def _tasks(args: argparse.Namespace, shape: Shape) -> dict[str, Task]:
    rng = random.Random(0)

    def prompts(count: int, length: int) -> list[list[int]]:
        return [[rng.randrange(shape.vocab_size - 1) for _ in range(length)] for _ in range(count)]

    many = prompts(BATCH_SIZE, args.prompt)
    tasks = {
        "first": Task(many[:1], 1),
        "one": Task(many[:1], args.new_tokens),
        "many": Task(many, args.new_tokens),
    }
    return tasks | ({"prompt": Task(prompts(1, LONG_PROMPT), 1)} if shape is GPT2 else {})


def _ceiling(folder: Path, args: argparse.Namespace) -> Ceiling | None:
    try:
        seconds_each, rounds = (0.03, 1) if args.quick else (0.08, 3)
        return Ceiling(folder, seconds_each=seconds_each, rounds=rounds)
    except FailedError as error:
        print(f"no ceiling: {error}\n")
        return None


def _rate(seconds: float) -> str:
    rate = 1 / seconds
    return f"{rate:,.{0 if rate >= 100 else 1}f}"


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--precisions", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds, no book")
    parser.add_argument("--compiled", action="store_true", help="the torch engine compiled, too")
    parser.add_argument("--no-book", dest="book", action="store_false", help="without its loop")
    parser.add_argument("--keep", type=Path, help="a folder where the models (2.6 GB) may stay")
    parser.add_argument("--python", type=Path, default=PYTHON, help="has llama.cpp, CTranslate2")
    args = parser.parse_args()
    if args.quick:
        args.new_tokens, args.rounds, args.book = 32, 2, False
    return args


if __name__ == "__main__":
    main()
