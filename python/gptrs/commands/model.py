"""The commands `gptrs params` and `gptrs explain`: what a model is made of, and what it does.

params PRESET|PATH               ─► parameters, FLOPs, memory       from the config alone, no torch
explain TEXT --model PRESET|PATH ─► the way of the text, step by step
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptrs.config import PRESETS, GPTConfig, get_config
from gptrs.errors import CheckpointError, SourceError
from gptrs.weights.missing import no_such_path

if TYPE_CHECKING:
    import tiktoken

    from gptrs.model.gpt import GPTModel
    from gptrs.text.tokenizer import Tokenizer


@click.command(epilog=f"Presets: {', '.join(PRESETS)}.")
@click.argument("model", metavar="PRESET|PATH")
@click.option("--length", type=click.IntRange(min=1),
              help="Tokens a sequence; by default as many as the model sees at once.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True,
              help="Sequences in a training step, for the activations' memory.")  # fmt: skip
def params(model: str, length: int | None, batch_size: int) -> None:
    """Count a model's parameters, FLOPs and memory, each with its formula.

    The model is a preset, or that of a run or a checkpoint, such as runs/demo-001, of a Hugging
    Face GPT-2's folder, or of a file that GPTModel.from_pretrained reads. Nothing is built or
    loaded: the largest preset takes no longer than the smallest.
    """
    from gptrs.costs.flops import format_flops
    from gptrs.costs.memory_budget import format_memory
    from gptrs.costs.params import format_budget

    cfg = config_of(model)
    tables = (
        format_budget(cfg, model),
        format_flops(cfg, length),
        format_memory(cfg, length, batch_size),
    )
    click.echo("\n\n".join(tables))


@click.command(epilog=f"Presets: {', '.join(PRESETS)}.")
@click.argument("text")
@click.option("--model", required=True, metavar="PRESET|PATH",
              help="A run, a checkpoint, a Hugging Face GPT-2's folder or a file of weights; or a "
              "preset: random weights.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True,
              help="Of the draw, and of a preset's random weights.")  # fmt: skip
@click.option("--blocks", type=click.IntRange(min=0), default=1, show_default=True,
              help="How many blocks to look into, from the first.")  # fmt: skip
def explain(text: str, model: str, seed: int, blocks: int) -> None:
    """Show the way of a text through a model, step by step, to the next token.

    Each step has its name in the book's code, the shape of its tensor, its formula, and some of its
    values.
    """
    from gptrs.costs.params import shape
    from gptrs.explain.sections import format_section
    from gptrs.explain.walk import explain as explained

    if not text:
        raise click.UsageError("TEXT is empty: there is nothing to explain")
    gpt, tokenizer, weights = _load(model, seed)
    sections = list(explained(gpt, tokenizer, text, seed, blocks))
    click.echo(f"{model}: {shape(gpt.cfg)}\n{weights}")
    for number, section in enumerate(sections, start=1):
        click.echo(f"\n{number:>2}  {format_section(section)}")


def config_of(model: str) -> GPTConfig:
    """A preset's config, or that of the model in a folder or file.

    Raises:
        ConfigError, SourceError: there is no such preset, or no such path.
        click.ClickException: the path has no model that can be read.
    """
    if model in PRESETS:
        return get_config(model)
    if not Path(model).exists():
        if Path(model).name != model:  # No preset's name has a folder's in front.
            raise SourceError(no_such_path(model))
        return get_config(model)
    from gptrs.weights.foreign_config import config_without_weights, is_known, read_json
    from gptrs.weights.manifest import CONFIG_FILE, FORMAT, checkpoint_in, read_manifest

    folder = checkpoint_in(model)
    try:
        content = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
        if content.get("format") == FORMAT:
            return read_manifest(folder).model
        if is_known(content):
            return config_without_weights(content, folder / CONFIG_FILE)
        from gptrs.weights.pretrained import config_of_pretrained  # The shapes must tell.

        return config_of_pretrained(model)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error


def _load(model: str, seed: int) -> tuple[GPTModel, Tokenizer | tiktoken.Encoding, str]:
    """A model, its tokenizer, and what its weights are, in words."""
    cfg = config_of(model)  # A preset that is misspelt is known before torch is imported.
    from gptrs.text.named_tokenizers import get_tokenizer
    from gptrs.weights.pretrained import with_tokenizer

    if model in PRESETS:
        words = f"random weights from seed {seed}: it has learned nothing, its guesses mean nothing"
        return _random_model(cfg, model, seed), get_tokenizer("gpt2"), words
    try:
        gpt, tokenizer = with_tokenizer(Path(model))
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error
    return gpt, tokenizer, f"the weights saved in {model}"


def _random_model(cfg: GPTConfig, name: str, seed: int) -> GPTModel:
    """A model as it is before training, if there is room for it."""
    import torch

    from gptrs.costs.params import count_parameters
    from gptrs.memory import check_memory
    from gptrs.model.gpt import GPTModel

    check_memory(4 * count_parameters(cfg), torch.device("cpu"), f"{name} in float32")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPTModel(cfg).eval()
