"""From text to the vectors a GPT computes with, one step at a time, every number printed.

    text ─► token ids ─► token embeddings + position embeddings ─► input of the first block

Run it: python examples/embeddings_by_hand.py
"""

import torch
from torch.nn.functional import cross_entropy, one_hot

from gptrs import GPTModel, create_dataloader_v1

# The opening of Edith Wharton's "The Verdict" (1908), the story the book trains on.
STORY = (
    "I HAD always thought Jack Gisburn rather a cheap genius--though a good fellow enough--so it "
    "was no great surprise to me to hear that, in the height of his glory, he had dropped his "
    "painting, married a rich widow, and established himself in a villa on the Riviera."
)
VOCAB_SIZE = 50257  # GPT-2's; ids run from 0 to 50,256
EMB_DIM = 256
MAX_LENGTH = 4
BATCH_SIZE = 8


def a_table_of_six_vectors() -> None:
    """Looking an id up is picking a row, or multiplying by a one-hot row."""
    print("1. An embedding is a table: one row of weights for each token id, ids counted from 0")
    torch.manual_seed(123)
    embedding = torch.nn.Embedding(6, 3)
    print(f"torch.nn.Embedding(6, 3): 6 rows, for the ids 0 to 5\n{show(embedding.weight)}")
    print(f"\nid 3 is the fourth row: {show(embedding(torch.tensor(3)))}")

    ids = torch.tensor([5, 1, 3, 2])
    looked_up = embedding(ids)
    print(f"\nids {ids.tolist()} look up four rows:\n{show(looked_up)}")

    rows = one_hot(ids, num_classes=6).float()
    product = rows @ embedding.weight
    print(f"\nThe same as a matrix product, of one-hot rows\n{rows.int().tolist()}")
    print(f"one-hot @ weight == lookup: {torch.equal(product, looked_up)}")


def positions_are_added() -> None:
    """A token's vector says which token, a position's where it stands."""
    print("\n2. A position has a vector too, and the two are added")
    token, position = torch.tensor([0.5, -0.2, 0.1]), torch.tensor([0.1, 0.3, -0.1])
    print(f"{show(token)} + {show(position)} = {show(token + position)}")


def a_batch_of_windows() -> tuple[torch.Tensor, torch.Tensor]:
    """Text becomes inputs and targets, [8, 4] each, and the inputs vectors, [8, 4, 256]."""
    print(f"\n3. A batch: {BATCH_SIZE} windows of {MAX_LENGTH} tokens")
    loader = create_dataloader_v1(
        STORY, batch_size=BATCH_SIZE, max_length=MAX_LENGTH, stride=MAX_LENGTH, shuffle=False
    )
    inputs, targets = next(iter(loader))
    print(f"inputs {tuple(inputs.shape)}, targets {tuple(targets.shape)}")
    print(f"first window {inputs[0].tolist()} -> {targets[0].tolist()}, one token later")

    torch.manual_seed(123)
    token_embedding = torch.nn.Embedding(VOCAB_SIZE, EMB_DIM)
    position_embedding = torch.nn.Embedding(MAX_LENGTH, EMB_DIM)
    tokens = token_embedding(inputs)
    positions = position_embedding(torch.arange(MAX_LENGTH))
    summed = tokens + positions
    print(f"token embeddings    {tuple(tokens.shape)}")
    print(f"position embeddings   {tuple(positions.shape)}, the same for every window")
    print(f"their sum           {tuple(summed.shape)}")

    added = summed - tokens
    same = all(torch.allclose(row[0], positions[0], atol=1e-6) for row in added)
    print(f"position 0 adds the same vector in all {BATCH_SIZE} rows: {same}")
    twice = token_embedding(torch.tensor([40, 40])) + positions[:2]
    print(f"id 40 at positions 0 and 1 gives the same input: {torch.equal(twice[0], twice[1])}")
    return inputs, targets


def one_training_step(inputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Only the rows that were looked up get a gradient."""
    print("\n4. Training moves the rows whose ids were in the batch, and no other")
    torch.manual_seed(123)
    model = GPTModel(
        {
            "vocab_size": VOCAB_SIZE,
            "context_length": MAX_LENGTH,
            "emb_dim": EMB_DIM,
            "n_heads": 4,
            "n_layers": 1,
            "drop_rate": 0.0,
        }
    )
    # Weight decay would shrink every row. So would tying: out_head's gradient reaches all of them.
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    before = model.tok_emb.weight.detach().clone()
    loss = cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    loss.backward()
    optimizer.step()
    after = model.tok_emb.weight.detach()

    in_batch = inputs.unique()
    moved = (after != before).any(dim=1).nonzero().flatten()
    absent = next(i for i in range(VOCAB_SIZE) if i not in in_batch)
    for token_id, name in ((40, "in the batch"), (absent, "not in it")):
        print(f"row {token_id}, {name}:")
        print(f"  before {show(before[token_id, :4])} ...")
        print(f"  after  {show(after[token_id, :4])} ...")
    print(f"different ids in the batch: {len(in_batch)}")
    print(f"rows that moved: {len(moved)} of {VOCAB_SIZE:,}")
    print(f"they are the same: {torch.equal(moved, in_batch)}")


def show(tensor: torch.Tensor) -> str:
    """The numbers with four decimals, one row a line."""
    if tensor.ndim == 2:
        return "\n".join(show(row) for row in tensor)
    return "[" + ", ".join(f"{value:.4f}" for value in tensor.tolist()) + "]"


def main() -> None:
    """All four steps."""
    a_table_of_six_vectors()
    positions_are_added()
    inputs, targets = a_batch_of_windows()
    one_training_step(inputs, targets)


if __name__ == "__main__":
    main()
