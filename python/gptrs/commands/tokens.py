"""The commands `gptrs train-tokenizer` and `gptrs tokenize`. No torch here."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from gptrs.commands.output_files import refuse_input
from gptrs.errors import ConfigError
from gptrs.text.named_tokenizers import get_tokenizer
from gptrs.text.reading import decode_utf8, find_text_files, read_text
from gptrs.text.tokenizer import END_OF_TEXT, FILE_NAME, Tokenizer
from gptrs.text.tokenizer_training import train_tokenizer as learn

if TYPE_CHECKING:
    import tiktoken

STANDARD_INPUT = "-"
# A number is a few bytes on the screen, and some fifty as a Python string on its way there.
PRINTED_TOGETHER = 1 << 16

tokenizer_option = click.option(
    "--tokenizer",
    "spec",
    default="gpt2",
    show_default=True,
    help="gpt2, tiktoken:gpt2, or the path of a tokenizer.json.",
)


@click.command()
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--vocab-size", type=int,
              help="How many ids, special tokens included; for characters, at most.")  # fmt: skip
@click.option("--kind", type=click.Choice(("bpe", "char")), default="bpe", show_default=True,
              help="Byte-pair encoding, or a token a character.")  # fmt: skip
@click.option("--special-token", "special_tokens", multiple=True, default=(END_OF_TEXT,),
              show_default=True, help="Gets an id of its own; may be repeated.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), default=FILE_NAME, show_default=True,
              help="The file to write, or a folder for it.")  # fmt: skip
def train_tokenizer(
    data: tuple[Path, ...],
    vocab_size: int | None,
    kind: Literal["bpe", "char"],
    special_tokens: tuple[str, ...],
    output: Path,
) -> None:
    """Learn a tokenizer from text: files, or folders with .txt and .md files.

    The file that it writes is for --tokenizer; Hugging Face's libraries read it too.
    """
    from tqdm.auto import tqdm

    if not output.is_dir() and not output.parent.is_dir():
        raise ConfigError(f"{output} cannot be written: there is no folder {output.parent}")
    files = find_text_files(data)
    refuse_input(output / FILE_NAME if output.is_dir() else output, files)
    num_merges = None if vocab_size is None else max(0, vocab_size - 256 - len(special_tokens))
    with tqdm(desc="merges", total=num_merges, unit="", delay=0.2) as bar:
        tokenizer = learn(
            files,
            vocab_size,
            special_tokens=special_tokens,
            kind=kind,
            on_progress=lambda done: bar.update(done - bar.n),
        )
        if num_merges is not None:
            bar.update(num_merges - bar.n)
    file = tokenizer.save(output)
    click.echo(
        f"{tokenizer.n_vocab:,} ids are in {file}\n\n"
        f"Train with it:\n  gptrs train {' '.join(map(str, data))} --tokenizer {file}"
    )


@click.command()
@click.argument("files", nargs=-1)
@click.option("--text", help="The text itself, instead of files.")
@tokenizer_option
@click.option("--count", "form", flag_value="count", help="Print the number of tokens only.")
@click.option("--pieces", "form", flag_value="pieces", help="Print each id with its text.")
@click.option("--allow-special", is_flag=True,
              help="Take <|endoftext|> and its like in the text for special tokens.")  # fmt: skip
@click.option("--errors", type=click.Choice(("strict", "replace")), default="strict",
              show_default=True,
              help="Refuse what is not UTF-8, or put U+FFFD in its place.")  # fmt: skip
def tokenize(
    files: tuple[str, ...],
    text: str | None,
    spec: str,
    form: str | None,
    allow_special: bool,
    errors: Literal["strict", "replace"],
) -> None:
    """Print the token ids of text: one line a file.

    Reads standard input where no file is named, or where a file is called "-". Files may be larger
    than memory: an error in one comes after the ids that precede it.
    """
    if files and text is not None:
        raise click.UsageError("--text and files exclude each other")
    tokenizer = get_tokenizer(spec)
    special: dict[str, Any] = {"disallowed_special": ()}
    if allow_special:
        special["allowed_special"] = "all"
    if text is not None:
        _print_ids([tokenizer.encode(text, **special)], tokenizer, form)
        return
    for file in files or (STANDARD_INPUT,):
        _print_ids(_ids_of(file, tokenizer, errors, special), tokenizer, form)


def _ids_of(
    file: str,
    tokenizer: Tokenizer | tiktoken.Encoding,
    errors: Literal["strict", "replace"],
    special: dict[str, Any],
) -> Iterator[Sequence[int]]:
    """The ids of a file: part by part, if it is a file and the tokenizer is ours."""
    if file == STANDARD_INPUT:
        content = sys.stdin.buffer.read()
        text = decode_utf8(content, source="standard input", errors=errors)
        yield tokenizer.encode(text, **special)
    elif isinstance(tokenizer, Tokenizer):
        for ids in tokenizer.encode_file_parts(file, errors=errors, **special):
            for start in range(0, len(ids), PRINTED_TOGETHER):
                yield ids[start : start + PRINTED_TOGETHER].tolist()
    else:
        yield tokenizer.encode(read_text(file, errors=errors), **special)


def _print_ids(
    parts: Iterable[Sequence[int]], tokenizer: Tokenizer | tiktoken.Encoding, form: str | None
) -> None:
    if form == "count":
        print(sum(map(len, parts)))
    elif form == "pieces":
        for token in chain.from_iterable(parts):
            print(f"{token}\t{tokenizer.decode_bytes([token])!r}")
    else:
        separator = ""
        for ids in filter(len, parts):
            print(separator, " ".join(map(str, ids)), sep="", end="")
            separator = " "
        print()
