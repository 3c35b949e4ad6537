"""Which vectors find a passage again? A model's layers and poolings, beside a trained retriever.

    a passage of the help topics ─► 12 tokens cut out of it ─► is that passage the nearest of all?

An easy question: its words are in the answer. A model that learned to predict the next token was
never asked to bring the two together; the retriever of answer_from_help.py was, on these passages.

Run it: python examples/which_layer.py runs/demo-001 [--questions 300]
"""

import argparse
from pydoc_data.topics import topics

import numpy as np
from answer_from_help import FEWEST_TOKENS, train_retriever

from gptrs import Embedder
from gptrs.embeddings.passages import Passage, split_passages
from gptrs.embeddings.pooling_kinds import Pooling

QUESTION_TOKENS = 12
WAYS: tuple[tuple[Pooling, int], ...] = (
    ("mean", 0),
    ("max", 0),
    ("mean", 1),
    ("mean", -1),
    ("weighted_mean", -1),
    ("max", -1),
    ("last", -1),
)


def main() -> None:
    """Asks the same questions each time, and prints a row for each way of making vectors."""
    args = arguments()
    embedder = Embedder(args.model)
    tokenizer = embedder.tokenizer
    passages = [
        passage
        for topic, text in sorted(topics.items())
        for passage in split_passages(text.splitlines(), topic, tokenizer.count)
        if tokenizer.count(passage.text) >= FEWEST_TOKENS
    ][: args.passages]
    random = np.random.default_rng(0)
    asked = random.choice(len(passages), args.questions)
    questions = [cutting(tokenizer, passages[row], random) for row in asked]
    print(f"{len(passages):,} passages, {len(questions)} questions\n")
    print("pooling        layer   first  in the first five")
    for pooling, layer in WAYS:
        of_model = Embedder(embedder.model, tokenizer=tokenizer, pooling=pooling, layer=layer)
        print(f"{pooling:14} {layer:5}  {found(of_model, passages, questions, asked)}", flush=True)
    retriever = train_retriever(passages, tokenizer, args.steps)
    trained = Embedder(retriever, tokenizer=tokenizer, layer=0)
    print(f"that retriever {'':5}  {found(trained, passages, questions, asked)}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Which vectors of a model find a passage again.")
    parser.add_argument("model", help="a run, a checkpoint or a GPT-2 folder")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--passages", type=int, help="so many at most")
    parser.add_argument("--steps", type=int, default=60, help="to train the retriever")
    return parser.parse_args()


def cutting(tokenizer, passage: Passage, random: np.random.Generator) -> str:
    """Some tokens of the passage that follow each other, but not its first."""
    ids = tokenizer.encode_ordinary(passage.text)
    start = int(random.integers(1, len(ids) - QUESTION_TOKENS))
    return tokenizer.decode(ids[start : start + QUESTION_TOKENS])


def found(embedder: Embedder, passages, questions, asked) -> str:
    """How often the passage that was asked for is the nearest, and one of the nearest five."""
    vectors_ND = embedder.embed([passage.text for passage in passages])
    cosines_QN = embedder.embed(questions) @ vectors_ND.T
    right_Q1 = np.take_along_axis(cosines_QN, asked[:, None], axis=1)
    num_nearer_Q = (cosines_QN > right_Q1).sum(1)
    return f"{(num_nearer_Q < 1).mean():6.1%}  {(num_nearer_Q < 5).mean():17.1%}"


if __name__ == "__main__":
    main()
