"""What later epochs of a classifier cost where the body is frozen: 10 at most 1.2 times the first.

    make bench-classifier                   GPT-2 124M's shape, 256 texts, some minutes on a CPU
    make bench-classifier ARGS="--texts 64 --layers 3"

The first epoch reads every text with the model; the others see what it kept. Beside it, what the
same epochs cost where the model reads the texts each time.
"""

import argparse
import random
import time
from statistics import median

import torch
from table import print_header, print_table

from gptrs import GPTModel
from gptrs.classifier.classifier import Classifier
from gptrs.classifier.features import BlockInputs
from gptrs.config import get_config

EPOCHS, BAR = 10, 1.2
WORDS = [word for word in (__doc__ or "").lower().split() if word.isalpha()]


def main() -> None:
    """Prints one line a way to train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--words", type=int, default=60, help="in a text, at most")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    torch.manual_seed(0)
    config = get_config("gpt2-124m").to_dict() | {"n_layers": args.layers}
    model = GPTModel(config).eval()
    texts, labels = labelled_texts(args.texts, args.words)
    print_header(
        f"classifier, 124M shape, {args.layers} layers, {args.texts} texts of at most "
        f"{args.words} words",
        torch.get_num_threads(),
        f"{EPOCHS} epochs at most {BAR} times the first, with --train head",
    )
    ways = {
        "head": {"train": "head"},
        "last_block": {"train": "last_block"},
        "last_block, nothing kept": {"train": "last_block"},
    }
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    keeps = BlockInputs.fits
    for _ in range(args.rounds):
        for way, settings in ways.items():
            BlockInputs.fits = staticmethod(lambda _: False) if "nothing" in way else keeps
            settings = settings | {"device": args.device, "dtype": args.dtype}
            times[way].append(epoch_seconds(model, texts, labels, settings))
    rows = [
        (
            way,
            f"{median(first for first, _ in found):.2f} s",
            f"{median(rest for _, rest in found) / (EPOCHS - 1):.3f} s",
            f"{median((first + rest) / first for first, rest in found):.3f}",
        )
        for way, found in times.items()
    ]
    print_table(("", "first epoch", "a later one", f"{EPOCHS} / first"), rows)


def epoch_seconds(model, texts, labels, settings) -> tuple[float, float]:
    """What the first epoch takes, and all others together."""
    classifier = Classifier(model, epochs=EPOCHS, patience=None, **settings)
    start = time.perf_counter()
    classifier.fit(texts, labels)
    whole = time.perf_counter() - start
    first = classifier.history_[0].seconds
    return first, whole - first


def labelled_texts(num_texts: int, most_words: int) -> tuple[list[str], list[int]]:
    """Texts of random words and lengths, the same each time, in two classes."""
    draw = random.Random(0)
    texts = [
        " ".join(draw.choices(WORDS, k=draw.randint(most_words // 4, most_words)))
        for _ in range(num_texts)
    ]
    return texts, [number % 2 for number in range(num_texts)]


if __name__ == "__main__":
    main()
