"""The command `gptrs generate`: a prompt to the terminal, or a file of prompts to a file of texts.

    --prompt TEXT, standard input ─► streamed ─► terminal
    --file PROMPTS.jsonl ─► batches ─► --out RESULTS.jsonl, which goes on where it was stopped

Reads options and prints. How a sequence goes on is `generator`'s business.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from gptrs.errors import CheckpointError, ConfigError
from gptrs.sampling.requests import EngineName
from gptrs.training.config import DeviceName

if TYPE_CHECKING:
    from gptrs.generation.generator import Completion, Generator

F = TypeVar("F", bound=Callable[..., Any])

# Probability from which on a token has this colour (of a terminal's 256), the likeliest first.
COLOURS = ((0.5, 34), (0.2, 142), (0.05, 178), (0.01, 208), (0.0, 196))


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in the order of --help."""

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


_sampling_options = _options(
    click.option("--max-new-tokens", default=100, show_default=True, help="Most tokens to write."),
    click.option("--temperature", default=0.8, show_default=True,
                 help="0 takes the likeliest token; higher is more varied."),
    click.option("--top-k", type=int, help="Draw from the k likeliest tokens only."),
    click.option("--top-p", type=float,
                 help="Draw from the likeliest tokens that have this share."),
    click.option("--min-p", type=float,
                 help="Draw from tokens with at least this share of the likeliest one's chance."),
    click.option("--typical-p", type=float,
                 help="Draw from the tokens that surprise most nearly as expected."),
    click.option("--repetition-penalty", type=float,
                 help="Above 1: tokens of prompt and output get less likely."),
    click.option("--frequency-penalty", type=float,
                 help="Taken off a token's logit for each time it was written."),
    click.option("--presence-penalty", type=float,
                 help="Taken off the logit of every token that was written."),
    click.option("--no-repeat-ngram-size", type=int,
                 help="No run of this many tokens is written twice."),
    click.option("--logit-bias", "biases", multiple=True, metavar="ID=VALUE",
                 help="Added to this token's logit; may be repeated."),
    click.option("--ban", "banned", multiple=True, metavar="TEXT",
                 help="A word that is never written; may be repeated."),
    click.option("--min-new-tokens", type=int, help="No end of text before that many tokens."),
    click.option("--seed", type=int, help="The same seed writes the same text."),
    click.option("--num-samples", default=1, show_default=True, help="Texts for each prompt."),
    click.option("--best-of", type=int, help="Write this many, keep the likeliest."),
    click.option("--num-beams", type=int,
                 help="Beam search: the likeliest text that so many beams find."),
    click.option("--length-penalty", type=float,
                 help="Above 0 beam search prefers longer texts, below shorter ones."),
    click.option("--stop", multiple=True, help="A text that ends the writing; may be repeated."),
    click.option("--choice", "choices", multiple=True,
                 help="The whole answer is one of these texts; may be repeated."),
    click.option("--regex", help="The whole answer matches this regular expression."),
    click.option("--overflow", type=click.Choice(("slide", "rebase", "stop")), default="slide",
                 show_default=True,
                 help="Past the context: slide the window at every token, keep its newest half, "
                      "or end."),
)  # fmt: skip


@click.command()
@click.option("--model", required=True, type=click.Path(path_type=Path),
              help="The folder of a run, a checkpoint or Hugging Face's GPT-2, or the book's "
                   ".pth.")  # fmt: skip
@click.option("--prompt", help="The text to continue; without it and --file, standard input.")
@click.option("--file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help='Many prompts, one a line: {"prompt": "..."}, and settings.')  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False),
              help="Where --file's texts go. The same command again goes on there.")  # fmt: skip
@click.option("--show-probs", is_flag=True,
              help="Colour each token by the probability that the model gave it.")  # fmt: skip
@click.option("--logprobs", type=int,
              help="With --file: log-probabilities, of so many other tokens too.")  # fmt: skip
@_sampling_options
@click.option("--device", type=click.Choice(get_args(DeviceName)), default="auto",
              show_default=True, help="Where to compute.")  # fmt: skip
@click.option("--dtype", type=click.Choice(("auto", "float32", "bfloat16", "int8")),
              help="What to compute in; the checkpoint's own type without it. int8: a byte a "
                   "weight, in Rust.")  # fmt: skip
@click.option("--int8-file", type=click.Path(path_type=Path, dir_okay=False),
              help="With --dtype int8: the file of the packed weights, written if it is not "
                   "there.")  # fmt: skip
@click.option("--engine", type=click.Choice(get_args(EngineName)), default="auto",
              show_default=True,
              help="Rust or PyTorch computes; auto takes Rust on a CPU if it can.")  # fmt: skip
def generate(
    model: Path,
    prompt: str | None,
    file: Path | None,
    out: Path | None,
    show_probs: bool,
    logprobs: int | None,
    device: str,
    dtype: str | None,
    int8_file: Path | None,
    engine: EngineName,
    **options: Any,
) -> None:
    """Continue a prompt, printing the text as it is written.

    With --file, many prompts at once: each line of the file is a JSON object with a "prompt", with
    an "id" if you like, and with settings of its own, named as here but with "_" for "-".
    """
    if prompt is not None and file is not None:
        raise click.UsageError("--prompt and --file exclude each other")
    if out is not None and file is None:
        raise click.UsageError("--out is for --file: a prompt's text goes to the terminal")
    if show_probs and file is not None:
        raise click.UsageError("--show-probs is for the terminal, not for --file")
    if logprobs is not None and file is None:
        raise click.UsageError("--logprobs is for --file: the terminal has --show-probs")
    if prompt == "":
        raise click.UsageError("--prompt is empty: there is nothing to go on from")
    if out is not None and file is not None:
        _check_out(out, file)
    banned = options.pop("banned")
    settings = _settings(options | {"logprobs": logprobs})
    if file is None and prompt is None:
        prompt = _standard_input()

    generator = _load(model, device, dtype, int8_file, engine)
    if banned:
        settings["bad_words_ids"] = _bad_words(banned, generator.tokenizer)
    if file is not None:
        from gptrs.commands.prompt_files import generate_file

        generate_file(generator, file, out, settings, model=model, dtype=dtype)
    elif show_probs:
        _print_probabilities(generator, prompt or "", settings)
    else:
        _print_texts(generator, prompt or "", settings)


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a Generator's call; what was not given is left to its defaults."""
    given = {name: value for name, value in options.items() if value not in (None, ())}
    biases = given.pop("biases", ())
    if biases:
        given["logit_bias"] = dict(_bias(bias) for bias in biases)
    for name in ("stop", "choices"):
        if name in given:
            given[name] = list(given[name])
    return given


def _check_out(out: Path, file: Path) -> None:
    if not out.parent.is_dir():
        raise ConfigError(f"{out} cannot be written: there is no folder {out.parent}")
    if out.exists() and out.samefile(file):
        raise ConfigError(f"{out} has the prompts: --out names another file, for the texts")
    if out.exists() and not out.is_file():
        raise ConfigError(f"{out} is no file to go on with: without --out the texts are printed")


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise click.UsageError(f"--logit-bias is ID=VALUE, as 198=-5; found {text!r}") from None


def _bad_words(words: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """The ids of each word, at the start of a text and behind a space."""
    return [tokenizer.encode(text) for word in words for text in (word, f" {word}")]


def _standard_input() -> str:
    """What is piped in. The last line's end is dropped, since `echo` adds one to any text."""
    if sys.stdin.isatty():
        raise click.UsageError("nothing to continue: give --prompt, --file, or pipe a text in")
    from gptrs.text.reading import decode_utf8

    text = decode_utf8(sys.stdin.buffer.read(), source="standard input").removesuffix("\n")
    if not text:
        raise click.UsageError("standard input is empty: there is nothing to go on from")
    return text


def _load(
    model: Path, device: str, dtype: str | None, int8_file: Path | None, engine: EngineName
) -> Generator:
    from gptrs.devices import choose_device
    from gptrs.generation.generator import Generator
    from gptrs.weights.pretrained import with_tokenizer

    target = choose_device(device)
    try:
        gpt, tokenizer = with_tokenizer(model, target)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error
    return Generator(gpt, tokenizer, dtype=dtype, int8_file=int8_file, engine=engine)


def _print_texts(generator: Generator, prompt: str, settings: dict[str, Any]) -> None:
    """One text as it is written, or several, each under its number."""
    from gptrs.commands.report import print_stream

    if settings["num_samples"] == 1 and not settings.keys() & {"best_of", "num_beams"}:
        print_stream(generator.stream(prompt, **_without(settings, "num_samples")), prompt)
        return
    completions = generator(prompt, **settings, progress=True)
    for number, completion in enumerate(completions, start=1):
        if len(completions) > 1:
            click.echo(f"--- {number}")
        click.echo(prompt + completion.text)


def _print_probabilities(generator: Generator, prompt: str, settings: dict[str, Any]) -> None:
    """The texts, coloured token by token, and what the colours mean."""
    for completion in generator(prompt, **settings, logprobs=0, progress=True):
        click.echo(prompt + "".join(_coloured(completion, generator.tokenizer)))
    legend = (click.style(f" {least:.0%} and more ", fg=colour) for least, colour in COLOURS)
    click.echo("probability under the model:" + "".join(legend), err=True)


def _coloured(completion: Completion, tokenizer: Any) -> Sequence[str]:
    """A completion's pieces, each in the colour of its token's probability."""
    from gptrs.text.stream_decoder import StreamDecoder

    decoder = StreamDecoder(tokenizer)
    pieces = []
    colour = COLOURS[0][1]
    for token, logprob in zip(completion.token_ids, completion.logprobs or (), strict=True):
        probability = math.exp(logprob.chosen)
        colour = next(colour for least, colour in COLOURS if probability >= least)
        pieces.append(click.style(decoder.push(token), fg=colour))
    pieces.append(click.style(decoder.finish(), fg=colour))
    return pieces


def _without(settings: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != name}
