"""Questions about Python, answered from its own help: retrieval-augmented generation, all of it.

    question ─► nearest passages of the help topics ─► prompt ─► a GPT trained here ─► answer

Two models, both trained on the spot. The retriever is an embedding table and a mean: it learns in
seconds that two cuttings of one passage belong together, and so which words tell passages apart
(contrastive learning, as Contriever's "independent cropping", Izacard et al. 2022). The writer is
the demo's GPT, or that of a run of your own. It is far too small to understand the question: what
is true here is in the passages.

Run it: python examples/answer_from_help.py "Which objects are mutable?" [--model runs/demo-001]
"""

import argparse
import tempfile
import textwrap
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
import torch.nn.functional as F

from gptrs import Generator, GPTModel, Tokenizer, train_tokenizer
from gptrs.commands.report import print_stream, train_in_new_run
from gptrs.embeddings.embedder import Embedder
from gptrs.embeddings.passages import Passage, split_passages
from gptrs.embeddings.vector_index_building import build_index
from gptrs.text.named_tokenizers import get_tokenizer
from gptrs.text.reading import help_topics
from gptrs.training.config import SMALL_GPT, TrainingConfig

QUESTION = "What happens when an exception is not handled?"
PASSAGE_TOKENS = 80
FEWEST_TOKENS = 24
"""A sentence out of its paragraph answers nothing."""
BATCH = 256
"""Passages in a step: each of them is told from all others."""
TEMPERATURE = 0.1


def main() -> None:
    """Reads the arguments; nothing is left on the disk."""
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        answer(args, Path(folder))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Questions about Python, answered from its help.")
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--model", help="a run or checkpoint that writes the answer")
    parser.add_argument("--minutes", type=float, default=0.5, help="to train a writer without one")
    parser.add_argument("--steps", type=int, default=60, help="to train the retriever")
    parser.add_argument("--top", type=int, default=3)
    return parser.parse_args()


def answer(args: argparse.Namespace, folder: Path) -> None:
    """Trains, retrieves, and lets the writer go on from what was found."""
    (folder / "help.txt").write_text(help_topics(), encoding="utf-8")
    tokenizer = train_tokenizer(folder / "help.txt", 4096)
    passages = [
        passage
        for topic, text in sorted(topics.items())
        for passage in split_passages(text.splitlines(), topic, tokenizer.count, PASSAGE_TOKENS)
        if tokenizer.count(passage.text) >= FEWEST_TOKENS
    ]
    retriever = train_retriever(passages, tokenizer, args.steps)
    embedder = Embedder(retriever, tokenizer=tokenizer, layer=0, pooling="mean")
    index = build_index(folder / "index", passages, embedder)
    writer = Generator(args.model or train_writer(folder, args.minutes))

    print(f"\nThe passages nearest to {args.question!r}, of {len(passages):,}:\n")
    hits = index.search(embedder, args.question, args.top)
    for hit in hits:
        print(f"{hit.score:.3f}  {hit.passage.place}")
        print(textwrap.indent(hit.passage.text, "    | ", lambda line: True) + "\n")

    num_parameters = sum(weight.numel() for weight in writer.model.parameters())
    print(
        f"With the first of them before its eyes, a model of {num_parameters / 1e6:.1f} million "
        "parameters (GPT-2's smallest has\n124 million) writes on. Expect the manner of a manual, "
        "and no sense:\n"
    )
    prompt = f"{args.question}\n\n{hits[0].passage.text}\n\nThe"
    # The manual is full of blanks, and without the last setting so is its imitation.
    settings = {"temperature": 0.7, "top_p": 0.8, "seed": 1, "no_repeat_ngram_size": 3}
    print_stream(writer.stream(prompt, 60, **settings), prompt)


def train_retriever(passages: list[Passage], tokenizer: Tokenizer, steps: int) -> GPTModel:
    """A model of which only the token embeddings are used, and trained."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    shape = {"vocab_size": tokenizer.n_vocab, "emb_dim": 256, "n_heads": 4, "n_layers": 1}
    model = GPTModel({**shape, "pos": "none"})
    optimizer = torch.optim.Adam(model.tok_emb.parameters(), lr=0.05)
    ids = [tokenizer.encode_ordinary(passage.text) for passage in passages]
    loss = torch.tensor(0.0)
    for _ in range(steps):
        batch = [ids[row] for row in random.integers(0, len(ids), BATCH)]
        questions = mean_vectors(model, [cutting(row, 3, 12, random) for row in batch])
        answers = mean_vectors(model, [cutting(row, 12, len(row), random) for row in batch])
        # Which of all the others is cut from the same passage?
        loss = F.cross_entropy(questions @ answers.T / TEMPERATURE, torch.arange(BATCH))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(
        f"The retriever tells a passage's cutting from {BATCH - 1} others with a loss of "
        f"{loss.item():.2f}; by chance it is {np.log(BATCH):.2f}."
    )
    return model


def cutting(ids: list[int], least: int, most: int, random: np.random.Generator) -> list[int]:
    """Some of a passage's tokens that follow each other."""
    length = int(random.integers(least, most + 1))
    start = int(random.integers(0, len(ids) - length + 1))
    return ids[start : start + length]


def mean_vectors(model: GPTModel, rows: list[list[int]]) -> torch.Tensor:
    """What an Embedder gives with layer=0 and pooling="mean", but with gradients: [B, D]."""
    starts = np.cumsum([0, *map(len, rows[:-1])])
    flat = torch.tensor([token for row in rows for token in row])
    means = F.embedding_bag(flat, model.tok_emb.weight, torch.from_numpy(starts), mode="mean")
    return F.normalize(means, dim=-1)


def train_writer(folder: Path, minutes: float) -> Path:
    """The demo's GPT, trained on the help topics; returns its checkpoint."""
    tokenizer = get_tokenizer("gpt2")
    tokens = tokenizer.encode_to_numpy(help_topics())
    config = TrainingConfig(minutes=minutes, num_evaluations=2, max_validation_tokens=4096)
    return train_in_new_run(
        folder, "writer", SMALL_GPT, tokens, config, tokenizer=tokenizer
    ).checkpoint


if __name__ == "__main__":
    main()
