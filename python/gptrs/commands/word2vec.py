"""The command `gptrs word2vec`. No torch here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from gptrs.commands.output_files import refuse_input
from gptrs.errors import ConfigError
from gptrs.text.tokenizer import FILE_NAME


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="STORE|INPUT...")
@click.option("--out", required=True, type=click.Path(path_type=Path),
              help="The file to write: binary if its name ends with .bin, else text.")  # fmt: skip
@click.option("--tokens", is_flag=True,
              help="Vectors of tokens, not of words: for scripts without spaces.")  # fmt: skip
@click.option("--tokenizer", "spec", default="gpt2", show_default=True,
              help="With --tokens: gpt2, or the path of a tokenizer.json.")  # fmt: skip
@click.option("--pattern", metavar="REGEX",
              help=r"What a word is, such as '\w+', not what whitespace ends.")  # fmt: skip
@click.option("--lower", is_flag=True, help="Put the text in lower case first.")
@click.option("--algorithm", type=click.Choice(("skip-gram", "cbow")), default="skip-gram",
              show_default=True, help="A word from each around it, or from all.")  # fmt: skip
@click.option("--vector-size", default=100, show_default=True, help="Numbers in a vector.")
@click.option("--window", default=5, show_default=True,
              help="The most words on each side that predict one.")  # fmt: skip
@click.option("--negative", default=5, show_default=True,
              help="Random words that each right one is told from.")  # fmt: skip
@click.option("--epochs", default=5, show_default=True, help="How often to read the text.")
@click.option("--alpha", default=0.025, show_default=True, help="The learning rate at the start.")
@click.option("--min-alpha", default=0.0001, show_default=True,
              help="The learning rate at the end.")  # fmt: skip
@click.option("--sample", default=1e-3, show_default=True,
              help="Leave out some of the words with a larger share of the text.")  # fmt: skip
@click.option("--cbow-mean/--cbow-sum", default=True, show_default=True,
              help="What cbow predicts from.")  # fmt: skip
@click.option("--min-count", default=5, show_default=True,
              help="Words that occur less often get no vector.")  # fmt: skip
@click.option("--max-vocab", type=int, help="The most words; the rarest get no vector.")
@click.option("--seed", default=1, show_default=True, help="Where the random numbers start.")
@click.option("--threads", type=int, help="How many threads learn; all processors by default.")
@click.option("--text-key", default="text", show_default=True,
              help="The field of a JSON line that has the text.")  # fmt: skip
@click.option("--errors", type=click.Choice(("strict", "replace")), default="strict",
              show_default=True,
              help="Refuse what is not UTF-8, or put U+FFFD in its place.")  # fmt: skip
def word2vec(inputs: tuple[str, ...], out: Path, tokens: bool, spec: str, **settings: Any) -> None:
    """Learn a vector for every word of a text, or for every token of a store.

    INPUT is a file, a folder, or a pattern such as 'data/*.txt': text, or JSON Lines (.jsonl), both
    also .gz or .zst. A line is a sentence; words stand between whitespace unless --pattern says
    otherwise. STORE is a folder that `gptrs build` made: its tokens get a vector each.

    The file that it writes is for word2vec, gensim and all who read theirs.
    """
    if out.is_dir() or not out.parent.is_dir():
        why = "it is a folder" if out.is_dir() else f"there is no folder {out.parent}"
        raise ConfigError(f"{out} cannot be written: {why}")
    is_store = len(inputs) == 1 and Path(inputs[0], "manifest.json").is_file()
    tokenizer = spec if tokens and not is_store else None
    refuse_input(out, _files_read(inputs, tokenizer, is_store))

    from gptrs.embeddings.word2vec import train_word2vec

    start = time.perf_counter()
    vectors = train_word2vec(list(inputs), tokenizer=tokenizer, progress=True, **settings)
    seconds = time.perf_counter() - start
    vectors.save(out)
    units = "tokens" if tokens or is_store else "words"
    learned = 0 if vectors.counts is None else settings["epochs"] * int(vectors.counts.sum())
    click.echo(
        f"{len(vectors):,} {units} x {vectors.vector_size} are in {out} "
        f"({learned / seconds:,.0f} {units} a second)\n\n"
        "Look at it:\n"
        f'  python -c "from gptrs import WordVectors; '
        f'print(WordVectors.load({str(out)!r}).most_similar({vectors.words[0]!r}))"'
    )


def _files_read(inputs: tuple[str, ...], tokenizer: str | None, is_store: bool) -> Iterator[Path]:
    """The files of the text and of the tokenizer, or of the store."""
    if is_store:
        yield from (file for file in Path(inputs[0]).iterdir() if file.suffix in (".json", ".npy"))
        return
    from gptrs.store.inputs import find_inputs

    named = [Path(source.name) for source in find_inputs(list(inputs))]
    if tokenizer is not None:
        named += [Path(tokenizer), Path(tokenizer, FILE_NAME)]
    yield from filter(Path.is_file, named)  # No "-", and no tokenizer that is a name only.
