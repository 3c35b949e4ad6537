"""The commands `gptrs finetune-classifier` and `gptrs classify`.

    data.csv ─► finetune-classifier ─► DIR: the classifier, metrics.json, confusion.png
    TEXT...  ─► classify DIR        ─► a label and its probability a line

No torch is imported before the table has been read.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from gptrs.classifier.labelled_texts import read_table
from gptrs.embeddings.pooling_kinds import Pooling
from gptrs.errors import ConfigError, DataError, MissingExtraError, SourceError
from gptrs.files import write_whole
from gptrs.text.reading import decode_utf8
from gptrs.training.config import DeviceName, DtypeName
from gptrs.weights.missing import no_such_path

if TYPE_CHECKING:
    from gptrs.classifier.classifier import Classifier

METRICS_FILE, PICTURE_FILE = "metrics.json", "confusion.png"
# `gptrs.classifier.files.STEM`'s JSON, whose module imports torch.
CLASSIFIER_FILE = "classifier.json"
# `gptrs.classifier.body.Train`, whose module imports torch.
TRAIN = ("head", "last_block", "lora", "all")


@click.command("finetune-classifier")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--text", "text_column", required=True, metavar="COLUMN",
              help="The column with the texts.")  # fmt: skip
@click.option("--label", "label_column", required=True, metavar="COLUMN",
              help="The column with their labels.")  # fmt: skip
@click.option("--model", required=True, metavar="PATH",
              help="A run, a checkpoint, a Hugging Face GPT-2's folder or a file of "
              "weights.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path),
              help="The folder for the classifier, made if missing.")  # fmt: skip
@click.option("--delimiter", help="Between columns; by default a tab for .tsv, a comma else.")
@click.option("--train", type=click.Choice(TRAIN), default="head", show_default=True,
              help="What learns; last_block is the book's recipe.")  # fmt: skip
@click.option("--pooling", type=click.Choice(get_args(Pooling)),
              help="Which of a text's tokens decide; by default, mean with --train head, which "
              "takes them as they are, else last.")  # fmt: skip
@click.option("--epochs", default=10, show_default=True, help="How often to read the texts.")
@click.option("--batch-size", default=16, show_default=True, help="Texts in a step.")
@click.option("--learning-rate", type=float, help="Of AdamW; by default, as --train needs it.")
@click.option("--weight-decay", default=0.1, show_default=True, help="AdamW's, on matrices.")
@click.option("--balanced", "class_weight", flag_value="balanced",
              help="All classes count the same, however many texts they have.")  # fmt: skip
@click.option("--validation-fraction", default=0.1, show_default=True,
              help="The share of each class that is held out.")  # fmt: skip
@click.option("--patience", type=int, default=3, show_default=True,
              help="Stop after so many epochs without a lower validation loss.")  # fmt: skip
@click.option("--max-length", type=int,
              help="Cut texts to so many tokens; by default, the model's context.")  # fmt: skip
@click.option("--lora-rank", default=8, show_default=True, help="With --train lora.")
@click.option("--lora-alpha", default=16.0, show_default=True, help="With --train lora.")
@click.option("--seed", default=0, show_default=True,
              help="Of first weights, order, dropout and who is held out.")  # fmt: skip
@click.option("--device", type=click.Choice(get_args(DeviceName)), default="auto",
              show_default=True, help="Where to train.")  # fmt: skip
@click.option("--dtype", type=click.Choice(get_args(DtypeName)), default="auto",
              show_default=True, help="What matmuls compute in.")  # fmt: skip
def finetune_classifier(
    data: Path,
    text_column: str,
    label_column: str,
    model: str,
    out: Path,
    delimiter: str | None,
    **settings: Any,
) -> None:
    """Teach a GPT to tell classes of texts apart, from a table of texts and labels.

    DATA is a CSV file in UTF-8 whose first line names its columns. With --train head the model runs
    over the texts once, and later epochs cost next to nothing. Ctrl-C stops, and nothing is
    written.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} cannot be written: it is a file")
    if not Path(model).exists():
        raise SourceError(no_such_path(model))
    texts, labels = read_table(data, text_column, label_column, delimiter)
    counts = Counter(labels)
    for label, number in sorted(counts.items()):
        click.echo(f"{number:>8,}  {label}")
    if len(counts) < 2:
        raise DataError(f"{data}: a classifier needs two classes at least, found {[*counts]}")

    from gptrs.classifier.classifier import Classifier

    _check_tokenizer_in(out, Path(model))
    classifier = Classifier(model, **settings, verbose=True).fit(texts, labels)
    classifier.save(out)
    _write_metrics(classifier, model, counts, out)
    _print_result(classifier, out)


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, metavar="TEXT...")
@click.option("--device", type=click.Choice(get_args(DeviceName)), default="auto",
              show_default=True, help="Where to compute.")  # fmt: skip
def classify(directory: Path, texts: tuple[str, ...], device: str) -> None:
    """Say which class texts are of: a label, its probability and the text, a line each.

    DIR is what finetune-classifier wrote. Without a TEXT, each line of standard input is one.
    """
    if not (directory / CLASSIFIER_FILE).is_file():
        raise SourceError(
            f"{directory}: no classifier here: there is no {CLASSIFIER_FILE}; "
            "gptrs finetune-classifier makes one"
        )
    if not texts:
        content = decode_utf8(sys.stdin.buffer.read(), source="standard input")
        texts = tuple(line for line in content.splitlines() if line)

    from gptrs.classifier.classifier import Classifier

    classifier: Any = Classifier.load(directory, device=device)  # type: ignore[arg-type]
    for text, shares in zip(texts, classifier.predict_proba(texts), strict=True):
        click.echo(f"{classifier.classes_[shares.argmax()]}\t{shares.max():.3f}\t{text}")


def _check_tokenizer_in(out: Path, model: Path) -> None:
    """Refuses before the training what saving would refuse after it: another model's classifier."""
    from gptrs.classifier.files import check_other_tokenizer
    from gptrs.text.named_tokenizers import get_tokenizer, own_tokenizer
    from gptrs.text.tokenizer import FILE_NAME
    from gptrs.weights.pretrained import tokenizer_beside

    if (out / FILE_NAME).exists():
        tokenizer = own_tokenizer(tokenizer_beside(model) or get_tokenizer("gpt2"))
        check_other_tokenizer(out / FILE_NAME, tokenizer)


def _write_metrics(classifier: Classifier, model: str, counts: Counter[str], out: Path) -> None:
    metrics = {
        "model": model,
        "num_learned_from": len(classifier.split_.train),
        "num_held_out": len(classifier.split_.validation),
        "num_cut": classifier.num_cut_,
        "classes": dict(sorted(counts.items())),
        "dtype": str(classifier.precision_.dtype).removeprefix("torch."),
        "dtype_reason": classifier.precision_.reason,
        "epochs": [asdict(epoch) for epoch in classifier.history_],
        "best_epoch": classifier.best_epoch_,
        "confusion": classifier.confusion_.tolist(),
    }
    content = json.dumps(metrics, indent=2, ensure_ascii=False) + "\n"
    write_whole(out / METRICS_FILE, content.encode())


def _print_result(classifier: Classifier, out: Path) -> None:
    from gptrs.classifier.labels import confusion_table, save_confusion_figure

    written = ["the classifier", METRICS_FILE]
    if classifier.num_cut_:
        click.echo(f"{classifier.num_cut_:,} texts were cut: they are longer than the model sees")
    if classifier.confusion_.any():
        click.echo(
            f"\nthe best epoch is {classifier.best_epoch_}; of what was held out, "
            f"{confusion_table(classifier.confusion_, classifier.classes_)}"
        )
        try:
            save_confusion_figure(out / PICTURE_FILE, classifier.confusion_, classifier.classes_)
            written.append(PICTURE_FILE)
        except MissingExtraError as error:
            click.echo(f"no {PICTURE_FILE}: {error}")
    click.echo(
        f"\n{', '.join(written[:-1])} and {written[-1]} are in {out}\n\n"
        f'Try it:\n  gptrs classify {shlex.quote(str(out))} "Is this one of them?"'
    )
