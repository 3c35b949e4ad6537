"""Why a transformer block has shortcuts: what 12 blocks do to the tokens, and to their gradients.

    with      x ─┬─► norm1 ─► att ─► + ─┬─► norm2 ─► ff ─► + ─►
                 └───────────────────┘  └──────────────────┘
    without   x ───► norm1 ─► att ─────────► norm2 ─► ff ────►

Run it: python examples/shortcut_gradients.py
"""

import copy

import torch
from torch.nn.functional import cross_entropy, normalize

from gptrs import GPTModel, TransformerBlock

CONFIG = {
    "vocab_size": 1000,  # ids run from 0 to 999
    "context_length": 32,
    "emb_dim": 96,
    "n_heads": 4,
    "n_layers": 12,
    "drop_rate": 0.0,
}


class BlockWithoutShortcuts(TransformerBlock):
    """The same layers in the same order; what goes in is not added to what comes out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, D] to [B, T, D]."""
        x = self.att(self.norm1(x))
        return self.ff(self.norm2(x))


def without_shortcuts(model: GPTModel) -> GPTModel:
    """A copy of the model, the same weights, in blocks without shortcuts."""
    model = copy.deepcopy(model)
    for index, block in enumerate(model.trf_blocks):
        bare = BlockWithoutShortcuts(model.cfg)
        bare.load_state_dict(block.state_dict())
        model.trf_blocks[index] = bare
    return model


def likeness(hidden: torch.Tensor) -> float:
    """Mean cosine of the angle between two tokens of a row: 1 when all of them look the same."""
    directions = normalize(hidden, dim=-1)
    cosines = directions @ directions.transpose(1, 2)
    num_tokens = hidden.shape[1]
    off_diagonal = ~torch.eye(num_tokens, dtype=torch.bool)
    return round(cosines[:, off_diagonal].mean().item(), 3) + 0.0  # + 0.0: no "-0.000"


def learn_once(model: GPTModel, ids: torch.Tensor) -> list[float]:
    """The likeness of the tokens before each block; leaves the gradients of one loss in `model`."""
    out = model(ids[:, :-1], return_hidden=True)
    cross_entropy(out.logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    return [likeness(hidden) for hidden in out.hidden[:-1]]


def mean_gradient(layer: torch.nn.Module) -> float:
    """Mean absolute gradient of the layer's weight."""
    return layer.weight.grad.abs().mean().item()


def main() -> None:
    """Prints both models side by side, block by block."""
    torch.manual_seed(123)
    model = GPTModel(CONFIG)
    bare = without_shortcuts(model)
    ids = torch.randint(0, CONFIG["vocab_size"], (4, CONFIG["context_length"] + 1))
    alike, bare_alike = learn_once(model, ids), learn_once(bare, ids)

    print("         mean |gradient| of att.W_query    likeness of a row's tokens")
    print("block    with shortcuts      without       with shortcuts   without")
    for index, (block, other) in enumerate(zip(model.trf_blocks, bare.trf_blocks, strict=True)):
        gradients = (mean_gradient(block.att.W_query), mean_gradient(other.att.W_query))
        print(
            f"{index:5}    {gradients[0]:14.2e}   {gradients[1]:10.2e}"
            f"       {alike[index]:14.3f}   {bare_alike[index]:7.3f}"
        )

    print("\nAttention mixes tokens. With nothing that keeps a token itself, 12 blocks of it leave")
    print("the tokens of a row all alike, and no gradient that could tell them apart.\n")
    for name, one, other in (
        ("token embedding", model.tok_emb, bare.tok_emb),
        ("first layer", model.trf_blocks[0].att.W_query, bare.trf_blocks[0].att.W_query),
    ):
        large, small = mean_gradient(one), mean_gradient(other)
        print(f"{name}: {large:.2e} with shortcuts, {small:.2e} without: {large / small:.0f} times")

    large, small = (mean_gradient(m.trf_blocks[0].ff.layers[0]) for m in (model, bare))
    print(
        "\nNot all gradients shrink: LayerNorm scales up what is small, so the first feed-forward"
    )
    print(f"layer's is even larger without shortcuts: {large:.2e} with them, {small:.2e} without.")


if __name__ == "__main__":
    main()
