"""The kinds of `gptrs plot` that draw the way of a text through a model.

embeddings, inputs ─► attention ─► lens ─► sampling
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptrs.commands.output_files import check_out, save
from gptrs.commands.plot_output import load, model_option, picture_options

if TYPE_CHECKING:
    import tiktoken

    from gptrs.model.gpt import GPTModel
    from gptrs.plots import Style
    from gptrs.text.tokenizer import Tokenizer


@click.command()
@click.argument("text")
@model_option
@click.option("--columns", type=click.IntRange(min=1),
              help="How many dimensions, from the first; by default all.")  # fmt: skip
@picture_options
def embeddings(text: str, path: str, columns: int | None, out: Path, style: Style) -> None:
    """The token embeddings of TEXT as a heat map, a row a token."""
    model, tokenizer = _ready(text, path, out)
    from gptrs.explain.insight import token_labels, token_vectors
    from gptrs.plots import table_figure
    from gptrs.text.prompts import PromptReader

    ids = PromptReader(tokenizer).ids(text)
    values = token_vectors(model, ids)[:, :columns]
    title = f"token embeddings, {path}"
    save(table_figure(values, token_labels(tokenizer, ids), title=title, style=style), out)


@click.command()
@click.argument("text")
@model_option
@click.option("--columns", type=click.IntRange(min=1), default=6, show_default=True,
              help="How many dimensions, from the first.")  # fmt: skip
@picture_options
def inputs(text: str, path: str, columns: int, out: Path, style: Style) -> None:
    """Token embeddings, positional embeddings and their sum, for TEXT."""
    model, tokenizer = _ready(text, path, out)
    from gptrs.explain.insight import inputs_of
    from gptrs.plots import sum_figure

    found = inputs_of(model, tokenizer, text)
    figure = sum_figure(
        found.tokens,
        found.positions,
        found.labels,
        columns=columns,
        title=f"what the first block of {path} is given",
        style=style,
    )
    save(figure, out)


@click.command()
@click.argument("text")
@model_option
@click.option("--layer", type=int, help="One layer alone, counted from 0.")
@click.option("--head", type=int, help="One head alone, counted from 0.")
@picture_options
def attention(
    text: str, path: str, layer: int | None, head: int | None, out: Path, style: Style
) -> None:
    """Which tokens each token of TEXT attends to, for every layer and head."""
    model, tokenizer = _ready(text, path, out)
    from gptrs.explain.insight import attention_of
    from gptrs.plots import attention_figure

    found = attention_of(model, tokenizer, text, layer=layer, head=head)
    chosen = [f"{what} {n}" for what, n in (("layer", layer), ("head", head)) if n is not None]
    title = ", ".join(["attention", *chosen, path])
    figure = attention_figure(
        found.weights,
        found.labels,
        title=title,
        first_layer=layer or 0,
        first_head=head or 0,
        style=style,
    )
    save(figure, out)


@click.command()
@click.argument("text")
@model_option
@click.option("--last", type=click.IntRange(min=1), default=10, show_default=True,
              help="Draw the last tokens only, so many.")  # fmt: skip
@picture_options
def lens(text: str, path: str, last: int, out: Path, style: Style) -> None:
    """The logit lens: what would come next, if each layer of the model were the last."""
    model, tokenizer = _ready(text, path, out)
    from gptrs.explain.insight import logit_lens
    from gptrs.plots import lens_figure

    found = logit_lens(model, tokenizer, text)
    figure = lens_figure(
        [row[-last:] for row in found.guesses],
        found.probabilities[:, -last:],
        found.labels[-last:],
        title=f"what each layer would say next, {path}",
        style=style,
    )
    save(figure, out)


@click.command()
@click.argument("text")
@model_option
@click.option("--repetition-penalty", type=float, help="Against the tokens of TEXT.")
@click.option("--no-repeat-ngram-size", type=int, help="No run of so many tokens comes twice.")
@click.option("--temperature", type=float, help="Divides the logits.")
@click.option("--top-k", type=int, help="Keep the k likeliest tokens.")
@click.option("--top-p", type=float, help="Keep the likeliest until they sum to this.")
@click.option("--min-p", type=float, help="Keep those with this share of the likeliest's.")
@click.option("--typical-p", type=float, help="Keep the most typical until they sum to this.")
@click.option("--shown", type=click.IntRange(1, 40), default=15, show_default=True,
              help="How many of the likeliest tokens to draw.")  # fmt: skip
@picture_options
def sampling(
    text: str, path: str, shown: int, out: Path, style: Style, **settings: float | None
) -> None:
    """The distribution of the token behind TEXT, before and after each sampling step."""
    from gptrs.sampling.config import SamplingConfig

    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    config = SamplingConfig(**given)
    model, tokenizer = _ready(text, path, out)
    from gptrs.explain.insight import next_token_of
    from gptrs.plots import sampling_figure

    found = next_token_of(model, tokenizer, text, config, shown=shown)
    figure = sampling_figure(
        found.steps,
        found.labels,
        most_likely=found.ids,
        title=f"the next token, {path}",
        style=style,
    )
    save(figure, out)


def _ready(text: str, path: str, out: Path) -> tuple[GPTModel, Tokenizer | tiktoken.Encoding]:
    """The model and its tokenizer, if there is something to draw, and a place for it."""
    if not text:
        raise click.UsageError("TEXT is empty: there is nothing to draw")
    check_out(out)
    return load(path)
