"""The book's training functions (its chapter 5), with its parameters, defaults and numbers.

They compute in the weights' dtype with plain torch, so that a seed gives the book's losses. For
training at speed (mixed precision, schedules, checkpoints) see `gptrs.training.trainer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gptrs.config import GPTConfig
from gptrs.generation.book import generate_text_simple, text_to_token_ids, token_ids_to_text
from gptrs.model.loss import next_token_loss

Device = str | torch.device
SAMPLE_TOKENS = 50
PLOT_FILE = "loss-plot.pdf"


class BatchLoader(Protocol):
    """What can be iterated over again and again and knows its length, such as a DataLoader."""

    def __iter__(self) -> Any: ...
    def __len__(self) -> int: ...


def calc_loss_batch(
    input_batch: Tensor, target_batch: Tensor, model: nn.Module, device: Device
) -> Tensor:
    """Mean cross-entropy of the model's next-token predictions, a scalar, in nats.

    Args:
        input_batch, target_batch: int64 [B, T].
        model: maps ids [B, T] to logits [B, T, V]. Those of a GPTModel are never held all at once.
        device: where the model is; the batch is moved there.
    """
    return next_token_loss(model, input_batch.to(device), target_batch.to(device))


def calc_loss_loader(
    data_loader: BatchLoader, model: nn.Module, device: Device, num_batches: int | None = None
) -> float:
    """Mean of `calc_loss_batch` over the first `num_batches`, or all; nan if there are none."""
    num_batches = len(data_loader) if num_batches is None else min(num_batches, len(data_loader))
    if num_batches == 0:
        return float("nan")
    total_loss = 0.0
    # The batch after the last is fetched too, as the book does: a loader that draws random numbers
    # is left in the same state.
    for i, (input_batch, target_batch) in enumerate(data_loader):
        if i == num_batches:
            break
        total_loss += calc_loss_batch(input_batch, target_batch, model, device).item()
    return total_loss / num_batches


def evaluate_model(
    model: nn.Module,
    train_loader: BatchLoader,
    val_loader: BatchLoader,
    device: Device,
    eval_iter: int,
) -> tuple[float, float]:
    """Training and validation loss over `eval_iter` batches each, without dropout or gradients.

    The model is left in training mode.
    """
    model.eval()
    with torch.no_grad():
        train_loss = calc_loss_loader(train_loader, model, device, num_batches=eval_iter)
        val_loss = calc_loss_loader(val_loader, model, device, num_batches=eval_iter)
    model.train()
    return train_loss, val_loss


def generate_and_print_sample(
    model: nn.Module, tokenizer: Any, device: Device, start_context: str
) -> None:
    """Prints `start_context` and the 50 most probable tokens after it, on one line.

    The model is left in training mode.
    """
    model.eval()
    with torch.no_grad():
        token_ids = generate_text_simple(
            model=model,
            idx=text_to_token_ids(start_context, tokenizer).to(device),
            max_new_tokens=SAMPLE_TOKENS,
            context_size=_context_size(model),
        )
    print(token_ids_to_text(token_ids, tokenizer).replace("\n", " "))
    model.train()


def _context_size(model: nn.Module) -> int:
    """How many tokens a model sees: ours says so, the book's has a table of as many positions."""
    cfg = getattr(model, "cfg", None)
    if isinstance(cfg, GPTConfig):
        return cfg.context_length
    return model.get_parameter("pos_emb.weight").shape[0]


def train_model_simple(
    model: nn.Module,
    train_loader: BatchLoader,
    val_loader: BatchLoader,
    optimizer: torch.optim.Optimizer,
    device: Device,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int,
    start_context: str,
    tokenizer: Any,
) -> tuple[list[float], list[float], list[int]]:
    """The book's training loop: one pass over `train_loader` an epoch, a sample printed after each.

    Args:
        eval_freq: evaluate after every so many steps, the first included.
        eval_iter: batches of each loader to evaluate on.
        start_context: what the printed samples continue.
    Returns:
        Training losses, validation losses, and the tokens seen before each.
    """
    train_losses: list[float] = []
    val_losses: list[float] = []
    track_tokens_seen: list[int] = []
    tokens_seen, global_step = 0, -1
    for epoch in range(num_epochs):
        model.train()
        for input_batch, target_batch in train_loader:
            optimizer.zero_grad()
            calc_loss_batch(input_batch, target_batch, model, device).backward()
            optimizer.step()
            tokens_seen += input_batch.numel()
            global_step += 1

            if global_step % eval_freq == 0:
                train_loss, val_loss = evaluate_model(
                    model, train_loader, val_loader, device, eval_iter
                )
                train_losses.append(train_loss)
                val_losses.append(val_loss)
                track_tokens_seen.append(tokens_seen)
                print(
                    f"Ep {epoch + 1} (Step {global_step:06d}): "
                    f"Train loss {train_loss:.3f}, Val loss {val_loss:.3f}"
                )
        generate_and_print_sample(model, tokenizer, device, start_context)
    return train_losses, val_losses, track_tokens_seen


def plot_losses(
    epochs_seen: Sequence[float] | Tensor,
    tokens_seen: Sequence[int],
    train_losses: Sequence[float],
    val_losses: Sequence[float],
) -> None:
    """Draws both losses over epochs and tokens, saves the figure as loss-plot.pdf, and shows it.

    Raises:
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    from gptrs import plots

    plots.save_and_show_losses(
        PLOT_FILE, list(map(float, epochs_seen)), tokens_seen, train_losses, val_losses
    )
