"""Vectors for texts: gptrs.embed beside transformers and sentence-transformers, with equal weights.

The paragraphs of Python's help topics, from a word to a page, through a GPT-2 of random weights;
tokens are counted without padding. Each is given what makes it fast: texts sorted by length, the
better of some batch sizes, and no output layer. All vectors are compared first. Then search: exact,
and by usearch's graph where that is installed, with its recall.

Run by hand: `python benches/bench_embeddings.py [--layers 3] [--device cuda --dtype bfloat16]`.
sentence-transformers takes part where it is installed.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
import transformers
from table import compare, print_header, print_table, seconds

from gptrs import GPTModel, get_tokenizer
from gptrs.config import get_config
from gptrs.embeddings.embedder import Embedder
from gptrs.embeddings.nearest import Graph, exact_nearest, recall
from gptrs.text.reading import help_topics

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
MOST_CHARS = 1000
Encode = Callable[[list[str]], np.ndarray]


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print_header(
        f"embeddings, GPT-2 124M with {args.layers} layers, {args.dtype} on {args.device}",
        torch.get_num_threads(),
        "a batched forward pass without padding",
    )
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), args.layers)
        for name, texts in corpora(args.tokens).items():
            compare_embedders(name, texts, Path(folder), args)
    if not args.no_search:
        time_search(args.vectors, args.dim)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Vectors for texts, and search.")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=20_000, help="of each corpus")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--batch-tokens", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--vectors", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--no-search", action="store_true")
    return parser.parse_args()


def write_model(folder: Path, layers: int) -> None:
    """A folder that all of them open."""
    torch.manual_seed(0)
    cfg = get_config("gpt2-124m").to_dict() | {"n_layers": layers}
    GPTModel(cfg).save_pretrained(folder, format="hf")


def corpora(num_tokens: int) -> dict[str, list[str]]:
    """Texts of very different lengths, and of nearly equal ones."""
    random = np.random.default_rng(0)
    topics = help_topics()
    # One long text would pad a whole batch of the others', which is none of ours to choose.
    paragraphs = [each for each in topics.split("\n\n") if 0 < len(each.strip()) < MOST_CHARS]
    random.shuffle(paragraphs)
    words = topics.split()
    # Of some hundred tokens, as `gptrs embed` cuts them.
    starts = random.integers(0, len(words) - 80, num_tokens)
    passages = [" ".join(words[start : start + 80]) for start in starts]
    return {"paragraphs": cut(paragraphs, num_tokens), "passages": cut(passages, num_tokens)}


def cut(texts: list[str], num_tokens: int) -> list[str]:
    """The first texts, of so many tokens."""
    tokenizer = get_tokenizer("gpt2")
    total = np.cumsum([tokenizer.count(text, disallowed_special=()) for text in texts])
    return texts[: int(np.searchsorted(total, num_tokens)) + 1]


def compare_embedders(name: str, texts: list[str], folder: Path, args: argparse.Namespace) -> None:
    tokenizer = get_tokenizer("gpt2")
    lengths = [tokenizer.count(text, disallowed_special=()) for text in texts]
    print(
        f"{len(texts):,} {name} of {min(lengths)} to {max(lengths)} tokens, "
        f"{sum(lengths):,} together"
    )
    encoders: dict[str, Encode] = {}
    for rows in (8, 32, 128):
        encoders |= with_transformers(folder, rows, args)
        with suppress(ModuleNotFoundError):
            encoders |= with_sentence_transformers(folder, rows, args)
    for batch_tokens in args.batch_tokens:
        encoders |= with_gptrs(folder, batch_tokens, args)
    expected = next(iter(encoders.values()))(texts)
    for label, encode in encoders.items():
        difference = np.abs(encode(texts) - expected).max()
        if difference > TOLERANCE[args.dtype]:
            sys.exit(f"{label}: its vectors differ by {difference}")
    runs = {label: partial(encode, texts) for label, encode in encoders.items()}
    compare(runs, work=sum(lengths), unit="tokens", rounds=args.rounds)


def with_gptrs(folder: Path, batch_tokens: int, args: argparse.Namespace) -> dict[str, Encode]:
    embedder = Embedder(
        folder, batch_tokens=batch_tokens, device=args.device, dtype=args.dtype, normalize=False
    )
    return {f"gptrs, {batch_tokens:,} tokens a batch": embedder.embed}


def with_transformers(folder: Path, rows: int, args: argparse.Namespace) -> dict[str, Encode]:
    """A batched forward pass as one writes it: sorted, padded, masked, the mean of the rest."""
    model = transformers.GPT2Model.from_pretrained(folder).eval().to(args.device)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token

    def encode(texts: list[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        vectors = np.empty((len(texts), model.config.hidden_size), np.float32)
        with torch.inference_mode(), autocast(args):
            for start in range(0, len(order), rows):
                batch = order[start : start + rows]
                inputs = tokenizer([texts[i] for i in batch], padding=True, return_tensors="pt")
                inputs = inputs.to(args.device)
                hidden = model(**inputs, use_cache=False).last_hidden_state.float()
                mask = inputs["attention_mask"][..., None]
                vectors[batch] = ((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy()
        return vectors

    return {f"transformers, {rows} texts a batch": encode}


def with_sentence_transformers(
    folder: Path, rows: int, args: argparse.Namespace
) -> dict[str, Encode]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    transformer = Transformer(str(folder))
    transformer.tokenizer.pad_token = transformer.tokenizer.eos_token
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    model = SentenceTransformer(modules=[transformer, pooling], device=args.device)

    def encode(texts: list[str]) -> np.ndarray:
        with autocast(args):
            return model.encode(texts, batch_size=rows, show_progress_bar=False)

    return {f"sentence-transformers, {rows} texts a batch": encode}


def autocast(args: argparse.Namespace) -> torch.autocast | nullcontext:
    if args.dtype == "float32":
        return nullcontext()
    return torch.autocast(args.device, DTYPES[args.dtype])


def time_search(sizes: list[int], dim: int) -> None:
    """Milliseconds of a question among vectors in clusters, as texts are."""
    rows = []
    for size in sizes:
        vectors = clustered(size, dim)
        time_ms = milliseconds(partial(exact_nearest, vectors), vectors)
        rows.append((f"{size:,} exactly", f"{time_ms:.2f}", "100.0%", ""))
        with suppress(ImportError):
            graph = Graph(dim)
            built = seconds(partial(graph.add, 0, vectors))
            time_ms = milliseconds(graph.nearest, vectors)
            found = f"{recall(graph, vectors):.1%}"
            rows.append((f"{size:,} by graph", f"{time_ms:.2f}", found, f"{built:.1f}"))
    print_table((f"vectors of {dim} numbers", "ms a question", "recall@10", "s to build"), rows)


def clustered(size: int, dim: int) -> np.ndarray:
    random = np.random.default_rng(0)
    centres = random.standard_normal((size // 100, dim), dtype=np.float32)
    vectors = centres[random.integers(0, len(centres), size)]
    vectors += random.standard_normal((size, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def milliseconds(nearest: Callable[[np.ndarray, int], object], vectors: np.ndarray) -> float:
    """The median of 20 questions, one at a time."""
    times = [seconds(partial(nearest, vectors[row : row + 1], 10)) for row in range(20)]
    return median(times) * 1e3


if __name__ == "__main__":
    main()
