"""The commands `gptrs embed` and `gptrs search`: files to passages with vectors, and back.

embed FILES --model RUN --out DIR ─► passages ─► vectors ─► DIR
search DIR "question"             ─► the passages nearest to it, with file and line

torch is imported once a command runs.
"""

from __future__ import annotations

import shlex
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import click

from gptrs.embeddings.pooling_kinds import Pooling
from gptrs.errors import CheckpointError, StoreError
from gptrs.training.config import DeviceName

if TYPE_CHECKING:
    from gptrs.embeddings.embedder import Embedder
    from gptrs.embeddings.vector_index import Hit, VectorIndex


STOPPED: Final = "stopped; the same command goes on"

_device_option = click.option(
    "--device",
    type=click.Choice(get_args(DeviceName)),
    default="auto",
    show_default=True,
    help="Where to compute.",
)
_dtype_option = click.option(
    "--dtype",
    type=click.Choice(("auto", "float32", "bfloat16")),
    help="What to compute in; the weights' own type without it.",
)


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--model", required=True, type=click.Path(path_type=Path),
              help="A run, a checkpoint, or a Hugging Face GPT-2's folder.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False),
              help="The folder for passages and vectors; an index there is replaced.")  # fmt: skip
@click.option("--overwrite", is_flag=True,
              help="Start anew, instead of going on with what was begun and stopped.")  # fmt: skip
@click.option("--passage-tokens", type=click.IntRange(min=1), default=128, show_default=True,
              help="About so many tokens in a passage at most.")  # fmt: skip
@click.option("--pooling", type=click.Choice(get_args(Pooling)), default="mean", show_default=True,
              help="What becomes of the vectors of a passage's tokens.")  # fmt: skip
@click.option("--layer", default=-1, show_default=True,
              help="Which hidden states: 0 is the embeddings, -1 the last. With a small model 0 or "
              "one from the middle often searches better: the last ones foretell the next "
              "token.")  # fmt: skip
@click.option("--batch-tokens", type=click.IntRange(min=1),
              help="Tokens in a batch.")  # fmt: skip
@click.option("--text-key", default="text", show_default=True,
              help="The field of a JSON line, or the column of a Parquet file.")  # fmt: skip
@click.option("--format", "input_format", type=click.Choice(("auto", "text", "jsonl")),
              default="auto", show_default=True,
              help="What files and standard input are; auto goes by the name.")  # fmt: skip
@click.option("--errors", type=click.Choice(("strict", "replace")), default="strict",
              show_default=True,
              help="Refuse what is not UTF-8, or put U+FFFD in its place.")  # fmt: skip
@click.option("--allow-special", is_flag=True,
              help="Take <|endoftext|> and its like in the text for special tokens.")  # fmt: skip
@click.option("--approximate/--exact", default=None,
              help="Make a graph for approximate search, or not; by default above 100,000 "
              "passages, if usearch is installed.")  # fmt: skip
@_device_option
@_dtype_option
def embed(
    inputs: tuple[str, ...],
    model: Path,
    out: Path,
    overwrite: bool,
    passage_tokens: int,
    input_format: Any,
    text_key: str,
    errors: Any,
    approximate: bool | None,
    device: str,
    dtype: str | None,
    **settings: Any,
) -> None:
    """Make vectors of the passages of files, for `gptrs search`.

    INPUT is a file, a folder, a pattern such as 'docs/**/*.md', or - for standard input. Text
    (.txt, .md, any other), JSON Lines (.jsonl), both also .gz, and Parquet. Paragraphs go together
    into a passage while they fit. After Ctrl-C or a kill the same command goes on.
    """
    from gptrs.store.inputs import find_inputs

    find_inputs(list(inputs), input_format)  # A path that is misspelt is known before torch is.

    from gptrs.embeddings.passages import read_passages
    from gptrs.embeddings.vector_index_building import MOST_EXACT, build_index

    given = {name: value for name, value in settings.items() if value is not None}
    embedder = _embedder(model, device, dtype=dtype, **given)
    passages = read_passages(
        list(inputs),
        embedder.tokenizer,
        passage_tokens=passage_tokens,
        input_format=input_format,
        text_key=text_key,
        errors=errors,
    )
    start, num_before = time.perf_counter(), 0

    def on_resume(num_passages: int) -> None:
        nonlocal start, num_before
        start, num_before = time.perf_counter(), num_passages
        click.echo(f"going on behind {num_passages:,} passages", err=True)

    try:
        index = build_index(
            out, passages, embedder,
            approximate=approximate, overwrite=overwrite, progress=True, on_resume=on_resume,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise KeyboardInterrupt(STOPPED) from None
    _print_summary(index, num_before, time.perf_counter() - start)
    if index.facts.recall is None and approximate is None and len(index.vectors) > MOST_EXACT:
        click.echo('A graph would make search faster: pip install "gptrs[search]", and again.')
    click.echo(f'\nSearch it:\n  gptrs search {shlex.quote(str(out))} "..."')


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("question")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True,
              help="How many passages to show.")  # fmt: skip
@click.option("--model", type=click.Path(path_type=Path),
              help="The model that made the vectors, if it was moved since.")  # fmt: skip
@click.option("--exact", is_flag=True, help="Look at all vectors, even if there is a graph.")
@_device_option
def search(
    directory: Path, question: str, top: int, model: Path | None, exact: bool, device: str
) -> None:
    """Show the passages that are most like a question, in a folder that `gptrs embed` made."""
    from gptrs.embeddings.vector_index import VectorIndex

    if not question:
        raise click.UsageError("QUESTION is empty: there is nothing to search for")
    try:
        index = VectorIndex.open(directory)
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    made_with = index.facts.model.get("path")
    path = model or (Path(made_with) if made_with else None)
    if path is None:
        raise click.UsageError("the index does not say where its model is: give --model")
    if model is None and not path.exists():
        raise click.UsageError(f"{path}, which made {directory}, is gone: --model says where it is")
    embedder = _embedder(path, device, **index.facts.settings)
    for hit in index.search(embedder, question, top, exact=exact):
        click.echo(_shown(hit))


def _embedder(path: Path, device: str, **settings: Any) -> Embedder:
    from gptrs.devices import choose_device
    from gptrs.embeddings.embedder import Embedder

    try:
        return Embedder(path, device=choose_device(device), **settings)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error


def _print_summary(index: VectorIndex, num_before: int, seconds: float) -> None:
    facts = index.facts
    click.echo(
        f"{facts.num_passages:,} passages x {facts.dim} are in {index.directory} "
        f"({(facts.num_passages - num_before) / seconds:,.0f} passages a second)"
    )
    if facts.recall is not None:
        click.echo(
            f"the graph finds {facts.recall:.1%} of the 10 nearest passages that exact search finds"
        )


def _shown(hit: Hit) -> str:
    text = textwrap.indent(hit.passage.text, "    ")
    return f"{hit.score:.3f}  {hit.passage.place}\n{text}\n"
