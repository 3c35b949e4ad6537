"""Instructions as `gptrs.train` takes them: what it learns from, and what it validates on.

    entries ─┬─► to learn from    ─► InstructionSource
             └─► held out         ─► batches

Rows are as long as the model's context, and a step is as large as the training's config says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gptrs.config import GPTConfig
from gptrs.training.config import WINDOWS_PER_STEP, TrainingConfig
from gptrs.training.data import Batch
from gptrs.training.instructions.batches import InstructionSource, instruction_batches
from gptrs.training.instructions.template import check_entries
from gptrs.training.instructions.tokens import LossOn, TooLong, encode_instructions, hold_out
from gptrs.training.step import World
from gptrs.training.validation import check_ids


class InstructionData(NamedTuple):
    """The `data` and the `validation` of `gptrs.train`."""

    source: InstructionSource
    validation: list[Batch]
    description: str
    """How many there are, and what was cut, for whoever watches."""


def instruction_data(
    entries: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    cfg: GPTConfig,
    config: TrainingConfig,
    *,
    validation: Sequence[Mapping[str, Any]] | None = None,
    loss_on: LossOn = "response",
    too_long: TooLong = "cut",
    world: World | None = None,
) -> InstructionData:
    """What a model of this config learns to follow instructions from.

    >>> data = instruction_data(read_instructions("data.jsonl"), tokenizer, model.cfg, config)
    >>> gptrs.train(model, data.source, config, run_dir="run", tokenizer=tokenizer,
    ...             validation=data.validation)

    Args:
        entries: as `read_instructions` gives them.
        config: its batch_tokens, micro_batch, seed, validation_fraction and max_validation_tokens
            hold here too.
        validation: entries to validate on; None holds out a share of `entries`.
        loss_on: "response", or "all" for the book's loss, on prompts too.
        too_long: whether an entry that is longer than the context is "cut" or "drop"ped.
        world: the processes that train together; None is this one alone.
    Raises:
        DataError: an entry is not as it should be, all are too long, or there are too few.
        TokenIdError: the tokenizer has ids that the model does not know, and entries have them.
        ConfigError: a step is no whole number of rows; or the tokenizer has no end-of-text.
    """
    world = world or World()
    entries = check_entries(entries)
    if validation is None:
        entries, validation = hold_out(entries, config.validation_fraction, config.seed)
    learned, held_out = (
        encode_instructions(
            part, tokenizer, max_length=cfg.context_length, loss_on=loss_on, too_long=too_long
        )
        for part in (entries, validation)
    )
    for encoded in (learned, held_out):
        check_ids(encoded.tokens, cfg.vocab_size)
    source = InstructionSource(
        learned,
        cfg.context_length,
        config.tokens_per_step(cfg.context_length),
        seed=config.seed,
        rank=world.rank,
        world_size=world.world_size,
        held_out=held_out,
    )
    most = max(1, config.max_validation_tokens // cfg.context_length)
    # Without gradients a row takes little memory: nothing is measured, and a resume cuts alike.
    batches = instruction_batches(
        held_out,
        cfg.context_length,
        batch_size=config.micro_batch or WINDOWS_PER_STEP,
        max_rows=most,
    )
    description = f"to train on: {learned}, {source.packed}\nheld out: {held_out}"
    return InstructionData(source, batches, description)
