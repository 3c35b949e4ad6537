"""Training a byte-pair vocabulary: gptrs beside tokenizers, and gigatoken where it is installed.

    make bench-train-tokenizer                  every size, on one processor and on two
    make bench-train-tokenizer ARGS=--quick     the smallest size, once

Each training is a process of its own, trainers in turns; its time includes reading the file.
gigatoken lives in the environment of `make bench-tokenizer`, whose newer `tokenizers` cannot train.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import tokenizer_corpus as corpus
from table import copy_ceiling, print_header, print_table
from tokenizer_environment import PYTHON
from tokenizer_runs import FailedError, environment, finished, processors

SIZES = (4_096, 16_384, 50_257)
TIMEOUT_S = 300.0
OURS = "gptrs"


def main() -> None:
    """Prints a table for each number of processors; or is one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smallest size, once")
    parser.add_argument("--train", nargs=3, metavar=("TRAINER", "FILE", "SIZE"))
    args = parser.parse_args()
    if args.train:
        trainer, file, vocab_size = args.train
        print(json.dumps(measure(TRAINERS[trainer], file, int(vocab_size))))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prose.txt"
        file.write_bytes(corpus.prose().encode())
        title = (
            f"training a byte-pair vocabulary: {file.stat().st_size / 1e6:.1f} MB of prose and code"
        )
        print_header(title, 2, copy_ceiling())
        for num_processors in (1, 2):
            print(f"{num_processors} processor{'s' * (num_processors > 1)}")
            sizes, rounds = (SIZES[:1], 1) if args.quick else (SIZES, 3)
            print_sizes(file, sizes, rounds, num_processors)


def print_sizes(file: Path, sizes: tuple[int, ...], rounds: int, num_processors: int) -> None:
    """Every trainer at every size."""
    rows = []
    for vocab_size in sizes:
        found = {name: [] for name in TRAINERS}
        failures = {}
        for _ in range(rounds):
            for name in TRAINERS:
                if name in failures:
                    continue
                try:
                    found[name].append(train_apart(name, file, vocab_size, num_processors))
                except FailedError as error:
                    failures[name] = str(error)
        for name, runs in found.items():
            label = f"{vocab_size:,} ids: {name}"
            if name in failures:
                rows.append([label, failures[name]])
            else:
                rows.append([label, *cells(runs, found["tokenizers"], found[OURS])])
    print_table(["", "seconds", "ours is", "tokens of tokenizers' own"], rows)


def cells(runs: list[dict], theirs: list[dict], ours: list[dict]) -> list[str]:
    """Median time, its ratio to ours round by round, and how much of the vocabulary is shared."""
    taken = [run["seconds"] for run in runs]
    ratios = [run["seconds"] / our["seconds"] for run, our in zip(runs, ours, strict=False)]
    shared = set(runs[0]["tokens"]) & set(theirs[0]["tokens"]) if theirs else set()
    share = len(shared) / len(theirs[0]["tokens"]) if theirs else 0
    return [f"{median(taken):.2f}", f"{median(ratios):.2f}x" if ratios else "", f"{share:.2%}"]


def train_apart(name: str, file: Path, vocab_size: int, num_processors: int) -> dict:
    """One training in a fresh process.

    Raises:
        FailedError: it did not end well.
    """
    python = str(PYTHON) if name == "gigatoken" else sys.executable
    command = [python, __file__, "--train", name, str(file), str(vocab_size)]
    with processors(num_processors):
        done = finished(command, environment(num_processors), TIMEOUT_S)
    return json.loads(done.stdout.splitlines()[-1])


def measure(train: Callable[[str, int], list[str]], file: str, vocab_size: int) -> dict:
    """The seconds of one training, and the tokens it made in GPT-2's letters for bytes."""
    small = Path(file).with_name("small.txt")
    small.write_text("Hello there")
    train(str(small), 257)  # Imports what it needs.
    start = time.perf_counter()
    tokens = train(file, vocab_size)
    return {"seconds": time.perf_counter() - start, "tokens": tokens}


def tokenizers(file: str, vocab_size: int) -> list[str]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[corpus.END_OF_TEXT],
        show_progress=False,
    )
    # Not from the file, which it would cut into lines: the text is one document for all.
    tokenizer.train_from_iterator([Path(file).read_bytes().decode()], trainer)
    return list(tokenizer.get_vocab())


def gigatoken(file: str, vocab_size: int) -> list[str]:
    import gigatoken

    vocabulary, _ = gigatoken.train_bpe(Path(file), vocab_size, [corpus.END_OF_TEXT])
    letters = letters_of_bytes()
    return ["".join(map(letters.__getitem__, token)) for token in vocabulary.values()]


def gptrs(file: str, vocab_size: int) -> list[str]:
    from gptrs import train_tokenizer

    tokenizer = train_tokenizer([file], vocab_size, special_tokens=[corpus.END_OF_TEXT])
    saved = tokenizer.save(Path(file).with_name("tokenizer.json"))
    return list(json.loads(saved.read_text(encoding="utf-8"))["model"]["vocab"])


def letters_of_bytes() -> dict[int, str]:
    """GPT-2's visible character for each byte."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {
        byte: chr(0x100 + index) for index, byte in enumerate(hidden)
    }


TRAINERS = {"tokenizers": tokenizers, "gigatoken": gigatoken, OURS: gptrs}


if __name__ == "__main__":
    main()
