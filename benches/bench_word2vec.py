"""Words a second of word2vec: gptrs beside gensim, in turns, with the same settings and threads.

    make bench-word2vec                  skip-gram and CBOW, one thread and two
    make bench-word2vec ARGS=--quick     skip-gram with one thread, once

gensim is measured where it is installed (`pip install --group bench-word2vec`), from a file
(`corpus_file`), which is its fast way. Each time is that of an epoch, the vocabulary being counted
before; both read and split the text meanwhile. Then what was learned is compared, with three seeds
each: how many of the ten nearest words of 1,000 frequent ones a run has in common with gensim's
runs of other seeds; and how many plurals it finds, as "file is to files as name is to".
"""

import argparse
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from statistics import mean, median

import tokenizer_corpus as corpus
from table import copy_ceiling, print_header, print_table

from gptrs.embeddings.word2vec import train_word2vec
from gptrs.embeddings.word_vectors import WordVectors

SETTINGS = {"vector_size": 100, "window": 5, "negative": 5, "alpha": 0.025, "min_count": 5}
ALGORITHMS = ("skip-gram", "cbow")
ROUNDS = 3
QUALITY_EPOCHS = 5
SEEDS = (1, 2, 3)
ASKED, NEAREST = 1000, 10
PAIRS, QUESTIONS = 200, 8


def main() -> None:
    """Prints the speeds, then what the vectors agree on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="skip-gram with one thread, once")
    parser.add_argument("--quality", action="store_true", help="only what was learned")
    args = parser.parse_args()
    quick = args.quick
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prose.txt"
        file.write_bytes(corpus.prose().encode())
        try:
            peer = f"gensim {version('gensim')}"
        except PackageNotFoundError:
            peer = None
            print("gensim is not installed: pip install --group bench-word2vec")
        title = f"word2vec: {file.stat().st_size / 1e6:.1f} MB of prose and code, {peer or 'alone'}"
        print_header(title, 2, copy_ceiling())
        rows = []
        for algorithm in () if args.quality else ALGORITHMS[: 1 if quick else 2]:
            for threads in (1,) if quick else (1, 2):
                rows += speeds(file, algorithm, threads, 1 if quick else ROUNDS, peer)
        if rows:
            print_table(["", "words/s", "ours is"], rows)
        if peer and not quick:
            columns = ["", "nearest words as gensim's", "plurals first", "among ten"]
            print_table(columns, agreement(file))


def speeds(
    file: Path, algorithm: str, threads: int, rounds: int, peer: str | None
) -> list[list[str]]:
    """A row for each program."""
    times = {peer: [], "gptrs": []} if peer else {"gptrs": []}
    num_words = 0
    for _ in range(rounds):
        seconds, num_words = ours(file, algorithm, threads)
        times["gptrs"].append(seconds)
        if peer:
            times[peer].append(gensims(file, algorithm, threads))
    rows = []
    for name, taken in times.items():
        ratio = median(theirs / mine for theirs, mine in zip(taken, times["gptrs"], strict=True))
        label = f"{algorithm}, {threads} thread{'s' * (threads > 1)}: {name}"
        rows.append([label, f"{num_words / median(taken):,.0f}", f"{ratio:.2f}x"])
    return rows


def ours(file: Path, algorithm: str, threads: int) -> tuple[float, int]:
    """The seconds of an epoch, and its words that have vectors."""
    starts = {}

    def note(phase: str, done: int, total: int) -> None:
        starts.setdefault(phase, (time.perf_counter(), done))

    vectors = train_word2vec(
        file, algorithm=algorithm, threads=threads, epochs=2, on_progress=note, **SETTINGS
    )
    start, done = starts["training"]  # The first call comes a little later than the first word.
    num_words = int(vectors.counts.sum())
    return (time.perf_counter() - start) * num_words / (2 * num_words - done), num_words


def gensims(file: Path, algorithm: str, threads: int) -> float:
    """The seconds of an epoch."""
    model = untrained(algorithm, threads, seed=1)
    model.build_vocab(corpus_file=str(file))
    start = time.perf_counter()
    model.train(
        corpus_file=str(file),
        total_words=model.corpus_total_words,
        total_examples=model.corpus_count,
        epochs=2,
    )
    return (time.perf_counter() - start) / 2


def untrained(algorithm: str, threads: int, seed: int):
    """A model of gensim, with our settings."""
    from gensim.models import Word2Vec

    skip_gram = int(algorithm == "skip-gram")
    return Word2Vec(workers=threads, sg=skip_gram, seed=seed, sample=1e-3, **SETTINGS)


def agreement(file: Path) -> list[list[str]]:
    """What each program's vectors know, over the seeds; nobody is compared with itself."""
    rows = []
    for algorithm in ALGORITHMS:
        theirs = [learned_by_gensim(file, algorithm, seed) for seed in SEEDS]
        mine = [
            train_word2vec(file, algorithm=algorithm, epochs=QUALITY_EPOCHS, seed=seed, **SETTINGS)
            for seed in SEEDS
        ]
        pairs = plurals(mine[0], theirs)
        for name, all_vectors in (("gensim", theirs), ("gptrs", mine)):
            common = [
                in_common(vectors, other, mine[0].words[:ASKED])
                for vectors in all_vectors
                for other in theirs
                if vectors is not other
            ]
            found = [
                spread([plurals_found(vectors, pairs, among) for vectors in all_vectors])
                for among in (1, NEAREST)
            ]
            rows.append([f"{algorithm}: {name}", spread(common), *found])
    return rows


def spread(shares: list[float]) -> str:
    """The mean, the least and the most."""
    return f"{mean(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"


def learned_by_gensim(file: Path, algorithm: str, seed: int) -> WordVectors:
    """With one thread: of several, each lowers the learning rate by its own words alone."""
    model = untrained(algorithm, 1, seed)
    model.build_vocab(corpus_file=str(file))
    model.train(
        corpus_file=str(file),
        total_words=model.corpus_total_words,
        total_examples=model.corpus_count,
        epochs=QUALITY_EPOCHS,
    )
    return WordVectors(model.wv.index_to_key, model.wv.vectors)


def in_common(first: WordVectors, second: WordVectors, words: list[str]) -> float:
    """The share of nearest words that both find."""

    def found(vectors: WordVectors, word: str) -> set[str]:
        return {other for other, _ in vectors.most_similar(word, topn=NEAREST)}

    shared = [len(found(first, word) & found(second, word)) for word in words if word in second]
    return sum(shared) / len(shared) / NEAREST


def plurals(mine: WordVectors, theirs: list[WordVectors]) -> list[tuple[str, str]]:
    """Frequent words with their plurals, as all vectors have them."""
    pairs = ((word, word + "s") for word in mine.words if len(word) > 3 and word.isalpha())
    known = (pair for pair in pairs if all(w in v for v in (mine, *theirs) for w in pair))
    return list(islice(known, PAIRS))


def plurals_found(vectors: WordVectors, pairs: list[tuple[str, str]], among: int) -> float:
    """The share of questions with the right answer among the first; each pair asks the next few."""
    right = asked = 0
    for place, (word, words) in enumerate(pairs):
        for other, others in pairs[place + 1 : place + 1 + QUESTIONS]:
            asked += 1
            answers = vectors.analogy(word, words, other, topn=among)
            right += others in [answer for answer, _ in answers]
    return right / asked


if __name__ == "__main__":
    main()
