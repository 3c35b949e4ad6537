"""The commands `gptrs plot KIND`: pictures of models, texts, vectors, runs and stores.

    of a text by a model    embeddings, inputs, attention, lens, sampling: text_plot
    of a model              projection, positions
    of configs, runs, data  parameters, loss, confusion, store

What is drawn is computed by `explain.insight`, and drawn by `plots`. Torch and matplotlib are
imported when a command runs.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptrs.commands.groups import TopicGroup
from gptrs.commands.model import config_of
from gptrs.commands.output_files import PAGE_SUFFIX, check_out, save
from gptrs.commands.plot_output import load, model_option, picture_options
from gptrs.commands.text_plot import attention, embeddings, inputs, lens, sampling
from gptrs.errors import ConfigError, DataError, StoreError
from gptrs.files import write_whole

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.figure import Figure

    from gptrs.plots import Style
    from gptrs.plots.losses import Axis, Shown
    from gptrs.store.token_store import TokenStore

_DOTS_ON_PICTURE, _DOTS_ON_PAGE = 300, 5000
_SINGLE_BYTES = 256
"""The first ids of a byte-pair vocabulary, as many as there are bytes, are not learned."""


@click.group(cls=TopicGroup)
def plot() -> None:
    """Draw a model, a text's way through it, vectors, a run or a store.

    Each kind writes one picture: a .png, .svg or .pdf, as --out is named. They need matplotlib:
    pip install "gptrs[plots]".
    """


@click.command()
@click.option("--model", "path", metavar="PATH", help="A model, whose token embeddings are drawn.")
@click.option("--vectors", type=click.Path(path_type=Path),
              help="Or a file of vectors: word2vec's, text or binary, or GloVe's.")  # fmt: skip
@click.option("--text", "text_file", type=click.Path(path_type=Path),
              help="With --model: the most frequent tokens of this file; by default the first ones "
              "that the tokenizer learned.")  # fmt: skip
@click.option("--top", type=click.IntRange(min=2),
              help=f"How many, from the first or most frequent on; by default {_DOTS_ON_PICTURE}, "
              f"and {_DOTS_ON_PAGE:,} on a page.")  # fmt: skip
@picture_options
def projection(
    path: str | None,
    vectors: Path | None,
    text_file: Path | None,
    top: int | None,
    out: Path,
    style: Style,
) -> None:
    """Vectors of tokens or words on a plane (PCA), with as many labels as there is room for.

    With an --out that ends in .html, a page that zooms and searches: one file, no network.
    """
    if (path is None) == (vectors is None):
        raise click.UsageError("projection needs a --model or --vectors, one of them")
    if text_file is not None and path is None:
        raise click.UsageError("--text goes with --model")
    is_page = out.suffix.lower() == PAGE_SUFFIX
    check_out(out, page_too=True)
    count = top or (_DOTS_ON_PAGE if is_page else _DOTS_ON_PICTURE)
    if vectors is not None:
        values, labels = _of_words(vectors, count)
    else:
        values, labels = _of_tokens(str(path), text_file, count)
    from gptrs.plots import projection_figure, projection_page

    title = f"{len(labels):,} of the vectors in {path or vectors}"
    if not is_page:
        save(projection_figure(values, labels, title=title, style=style), out)
        return
    write_whole(out, projection_page(values, labels, title=title).encode())
    click.echo(f"drawn: {out}")


@click.command()
@model_option
@click.option("--text", help="For relative_key, relative_key_query and transformer_xl: the text "
              "whose queries and keys are averaged.")  # fmt: skip
@click.option("--layer", type=int, default=0, show_default=True,
              help="For the same kinds: of which layer, counted from 0.")  # fmt: skip
@picture_options
def positions(path: str, text: str | None, layer: int, out: Path, style: Style) -> None:
    """What a model knows of places: vectors and their cosines, or what scores get by distance."""
    check_out(out)
    model, tokenizer = load(path)
    from gptrs.explain.insight import (
        ADDED_TO_EMBEDDINGS,
        NEED_A_TEXT,
        position_scores,
        position_vectors,
    )
    from gptrs.plots import position_scores_figure, positions_figure

    kind = model.cfg.pos
    if kind in ADDED_TO_EMBEDDINGS:
        title = f"{kind} positions of {path}"
        figure = positions_figure(position_vectors(model), title=title, style=style)
    else:
        if kind in NEED_A_TEXT and not text:
            raise ConfigError(
                f'pos is "{kind}": its scores depend on the queries of a text: --text names one'
            )
        scores = position_scores(model, tokenizer, text, layer=layer)
        title = f"what positions do to the scores, {path}"
        figure = position_scores_figure({kind: scores}, title=title, style=style)
    save(figure, out)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--by", type=click.Choice(("tokens", "steps", "minutes")),
              help="What the axis counts; by default tokens, or steps where a run does not say "
              "how many tokens these have.")  # fmt: skip
@click.option("--show", type=click.Choice(("both", "training", "validation")), default="both",
              show_default=True, help="Which losses.")  # fmt: skip
@picture_options
def loss(runs: tuple[Path, ...], by: Axis | None, show: Shown, out: Path, style: Style) -> None:
    """The loss curves of RUNS over each other, from their metrics.jsonl."""
    check_out(out)
    from gptrs.plots import losses_figure
    from gptrs.training.reports.metrics import METRICS_FILE, read_losses

    curves = {
        str(run.parent if run.name == METRICS_FILE else run): read_losses(run) for run in runs
    }
    save(losses_figure(curves, by=by, show=show, style=style), out)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@picture_options
def confusion(directory: Path, out: Path, style: Style) -> None:
    """What the classifier in DIRECTORY takes for what, of the texts that were held out."""
    check_out(out)
    from gptrs.plots import confusion_figure
    from gptrs.training.reports.metrics import read_confusion

    matrix, classes = read_confusion(directory)
    title = f"{matrix.trace():,} of {matrix.sum():,} held-out texts are right"
    save(confusion_figure(matrix, classes, title, style=style), out)


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="PRESET|PATH...")
@picture_options
def parameters(models: tuple[str, ...], out: Path, style: Style) -> None:
    """Where the parameters of models are: presets, runs, checkpoints or others' folders."""
    check_out(out)
    from gptrs.costs.params import parameter_budget
    from gptrs.plots import budget_figure

    budgets = {model: parameter_budget(config_of(model)) for model in models}
    save(budget_figure(budgets, title="where the parameters are", style=style), out)


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(0, 40), default=15, show_default=True,
              help="How many of the most frequent tokens to name.")  # fmt: skip
@picture_options
def store(path: Path, top: int, out: Path, style: Style) -> None:
    """How long a token store's documents are, and which tokens are frequent."""
    check_out(out)
    save(picture_of_store(path, top, style=style), out)


plot.add_topic("A text on its way through a model", embeddings, inputs, attention, lens, sampling)
plot.add_topic("A model, or vectors", projection, positions, parameters)
plot.add_topic("Runs, classifiers and stores", loss, confusion, store)


def picture_of_store(path: Path, top: int = 15, *, style: Style = "light") -> Figure:
    """Document lengths, token frequencies and the `top` most frequent tokens of a store.

    Raises:
        click.ClickException: there is no store.
        MissingExtraError: matplotlib is not installed; the message has the pip line.
    """
    from gptrs.plots import store_figure
    from gptrs.store.token_store import TokenStore, count_along

    try:
        store = TokenStore.open(path)
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    _, _, bins = store._core.document_lengths()
    with count_along("counting", len(store), shown=True) as on_progress:
        counts = store._core.token_counts(0, len(store), threads=None, on_progress=on_progress)
    order = (-counts.astype("int64")).argsort(kind="stable")[:top]
    return store_figure(
        length_bins=bins,
        token_counts=counts,
        frequent=_known_labels(store, [token for token in order.tolist() if counts[token]]),
        title=f"{path.resolve().name}: {len(store):,} tokens in {store.num_documents:,} documents",
        style=style,
    )


def _of_tokens(path: str, text_file: Path | None, count: int) -> tuple[npt.NDArray[Any], list[str]]:
    """The vectors and labels of a model's tokens: the most frequent of a text, or the first."""
    model, tokenizer = load(path)
    from gptrs.explain.insight import token_labels, token_vectors
    from gptrs.text.prompts import PromptReader
    from gptrs.text.reading import read_text

    if text_file is not None:
        text = read_text(text_file)
        if not text:
            raise DataError(f"{text_file}: is empty: there are no tokens to draw")
        ids = [token for token, _ in Counter(PromptReader(tokenizer).ids(text)).most_common(count)]
    else:
        num_ids = model.cfg.vocab_size
        first = _SINGLE_BYTES if num_ids >= 2 * _SINGLE_BYTES else 0
        ids = list(range(first, min(first + count, tokenizer.n_vocab, num_ids)))
    return token_vectors(model, ids), token_labels(tokenizer, ids)


def _of_words(file: Path, count: int) -> tuple[npt.NDArray[Any], list[str]]:
    """The first vectors of a file, which are the most frequent words' as a rule."""
    from gptrs.embeddings.word_vectors import WordVectors

    vectors = WordVectors.load(file)
    return vectors.vectors[:count], vectors.words[:count]


def _known_labels(store: TokenStore, ids: list[int]) -> list[str]:
    """The tokens' texts; their ids where the store's tokenizer is not to be had."""
    from gptrs.plots import token_label

    try:
        tokenizer = store.tokenizer
    except StoreError as error:
        click.echo(f"ids are shown without their text: {error}", err=True)
        return [str(token) for token in ids]
    return [token_label(tokenizer.decode_bytes([token])) for token in ids]
