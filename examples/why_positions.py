"""Why a model is told where its tokens are: the cat and the mat exchange their places.

    the cat sat on the mat.
    the mat sat on the cat.    the same tokens; are they the same to the model?

Attention is a weighted sum, and a sum has no order. A causal block sees which tokens came before,
but not where: after the full stop, both sentences are one bag of words to it. A second block can
tell them apart even so, since what it reads at each place is what the first one made of the tokens
up to there. Every kind of positions tells one block already.

Run it: python examples/why_positions.py
"""

from typing import get_args

import torch

from gptrs import GPTModel, get_tokenizer
from gptrs.config import Pos

SENTENCES = ("the cat sat on the mat.", "the mat sat on the cat.")
CONFIG = {
    "vocab_size": 50257,  # GPT-2's
    "context_length": 16,
    "emb_dim": 64,
    "n_heads": 4,
    "drop_rate": 0.0,
}
ROUNDING = 1e-5
"""float32 adds in another order when the tokens stand in another: smaller differences are that."""


def difference(pos: str, n_layers: int, ids: torch.Tensor) -> float:
    """How far an untrained model's predictions after the two sentences are apart, at most."""
    torch.manual_seed(123)
    model = GPTModel({**CONFIG, "pos": pos, "n_layers": n_layers}).eval()
    with torch.no_grad():
        after_the_full_stop = model(ids)[:, -1]
    return (after_the_full_stop[0] - after_the_full_stop[1]).abs().max().item()


def verdict(pos: str, n_layers: int, ids: torch.Tensor) -> str:
    """The difference, and whether it is one."""
    found = difference(pos, n_layers, ids)
    return f"{found:.0e}  {'different' if found > ROUNDING else 'the same'}"


def main() -> None:
    """Prints a row for each kind of positions."""
    tokenizer = get_tokenizer("gpt2")
    ids = torch.tensor([tokenizer.encode(sentence) for sentence in SENTENCES])
    for sentence, row in zip(SENTENCES, ids.tolist(), strict=True):
        print(f"{sentence}  {row}")

    print("\nHow far the logits after the full stop are apart, at most (float32 rounds: below")
    print(f"{ROUNDING:.0e} they are the same):\n")
    print(f"{'pos':20}{'one block':20}two blocks")
    for pos in get_args(Pos):
        print(f"{pos:20}{verdict(pos, 1, ids):20}{verdict(pos, 2, ids)}")


if __name__ == "__main__":
    main()
