"""Makes every picture in docs/images, light and dark, and the page projection.html.

    python docs/pictures.py          all of them: three minutes of one processor
    python docs/pictures.py logit    those whose names begin so

The models in them are trained here, on the help texts that come with Python: one of a million
parameters for a minute, so that its attention and its guesses mean something, and smaller ones with
other kinds of positions, all on one thread. No network. The pictures are the same each time; with
another PyTorch or kind of processor they differ a little.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING, Any, get_args

import torch
from PIL import Image

from gptrs import (
    PRESETS,
    Classifier,
    GPTConfig,
    GPTModel,
    SamplingConfig,
    WordVectors,
    build_store,
    plots,
    train_tokenizer,
    train_word2vec,
)
from gptrs.commands.plot import picture_of_store
from gptrs.costs.params import parameter_budget
from gptrs.explain import insight
from gptrs.plots import Style
from gptrs.text.reading import help_topics
from gptrs.training.config import TrainingConfig
from gptrs.training.reports.metrics import read_losses
from gptrs.training.trainer import train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = Path(__file__).parent / "images"
TEXT = "If the object has a method, it is called with the"
SHORT_TEXT = "If the object has a method"
SAMPLING = SamplingConfig(temperature=0.8, top_k=10, top_p=0.9)
CONFIG = GPTConfig(
    vocab_size=2000,
    context_length=128,
    emb_dim=128,
    n_heads=4,
    n_layers=4,
    drop_rate=0.1,
    tie_embeddings=True,
    init="gpt2",
)
MAIN_STEPS, SHORT_STEPS = 500, 120
KINDS = ("alibi", "rope", "t5", "relative_key", "transformer_xl")
CLASSES = ("compound", "specialnames", "string-methods", "types")


@dataclass(frozen=True)
class Workshop:
    """What the pictures need, made when it is first asked for, in a folder that is thrown away."""

    folder: Path

    @cached_property
    def text_file(self) -> Path:
        """The help topics in a file."""
        file = self.folder / "help.txt"
        if not file.exists():
            file.write_text(help_topics(), encoding="utf-8")
        return file

    @cached_property
    def tokenizer(self) -> Any:
        """A small one of their own: the model learns more in a minute."""
        return train_tokenizer(self.text_file, CONFIG.vocab_size)

    @cached_property
    def model(self) -> GPTModel:
        """The model of most pictures, with learned positions."""
        return self.train("learned", MAIN_STEPS)

    @cached_property
    def others(self) -> dict[str, GPTModel]:
        """One for each other kind of positions."""
        return {kind: self.train(kind, SHORT_STEPS) for kind in KINDS}

    def train(self, pos: Any, steps: int) -> GPTModel:
        """Trains a model in `folder/pos`."""
        torch.manual_seed(123)
        model = GPTModel(GPTConfig.of(CONFIG.to_dict() | {"pos": pos}))
        tokens = self.tokenizer.encode_to_numpy(help_topics())
        config = TrainingConfig(steps=steps, device="cpu")
        train(model, tokens, config, run_dir=self.folder / pos, tokenizer=self.tokenizer)
        return model.eval()

    @cached_property
    def frequent(self) -> list[int]:
        """The ids of all tokens that occur, the most frequent first."""
        ids = self.tokenizer.encode(help_topics())
        return [token for token, _ in Counter(ids).most_common()]

    @cached_property
    def words(self) -> WordVectors:
        """Vectors of two numbers, one thread for the same ones each time."""
        return train_word2vec(
            self.text_file,
            algorithm="cbow",
            vector_size=2,
            pattern=r"[A-Za-z]+",
            lower=True,
            min_count=20,
            epochs=100,
            threads=1,
        )

    @cached_property
    def classifier(self) -> Classifier:
        """Tells four topics apart by their lines."""
        lines = {
            topic: [line.strip() for line in topics[topic].splitlines() if len(line) > 40]
            for topic in CLASSES
        }
        texts = [line for topic in CLASSES for line in lines[topic]]
        labels = [topic for topic in CLASSES for _ in lines[topic]]
        classifier = Classifier(
            self.model, tokenizer=self.tokenizer, pooling="mean", validation_fraction=0.25
        )
        return classifier.fit(texts, labels)


def embedding_table(shop: Workshop, style: Style) -> Figure:
    """Token embeddings as a heat map."""
    ids = shop.tokenizer.encode(TEXT)
    labels = insight.token_labels(shop.tokenizer, ids)
    vectors = insight.token_vectors(shop.model, ids)
    return plots.table_figure(vectors, labels, title="token embeddings", style=style)


def input_embeddings(shop: Workshop, style: Style) -> Figure:
    """Tokens, positions and their sum."""
    found = insight.inputs_of(shop.model, shop.tokenizer, SHORT_TEXT)
    title = "what the first block is given"
    return plots.sum_figure(found.tokens, found.positions, found.labels, title=title, style=style)


def projection(shop: Workshop, style: Style) -> Figure:
    """The most frequent tokens on a plane."""
    ids = shop.frequent[:220]
    labels = insight.token_labels(shop.tokenizer, ids)
    title = f"the {len(ids)} most frequent tokens' embeddings"
    vectors = insight.token_vectors(shop.model, ids)
    return plots.projection_figure(vectors, labels, title=title, style=style)


def word_vectors(shop: Workshop, style: Style) -> Figure:
    """Word vectors of two numbers."""
    vectors, words = shop.words.vectors[:130], shop.words.words[:130]
    title = "word2vec with two numbers a word"
    return plots.projection_figure(vectors, words, title=title, style=style)


def positions(shop: Workshop, style: Style) -> Figure:
    """The table of learned positions."""
    vectors = insight.position_vectors(shop.model)
    title = f"learned positions after {MAIN_STEPS} steps"
    return plots.positions_figure(vectors, title=title, style=style)


def positions_sinusoidal(shop: Workshop, style: Style) -> Figure:
    """Sines and cosines, which are not learned."""
    del shop
    model = GPTModel(GPTConfig.of(CONFIG.to_dict() | {"pos": "sinusoidal"}))
    vectors = insight.position_vectors(model)
    return plots.positions_figure(vectors, title="sinusoidal positions", style=style)


def position_scores(shop: Workshop, style: Style) -> Figure:
    """What other kinds of positions do to the scores."""
    text = help_topics()[:300]
    scores = {
        f"{kind}: {what}": insight.position_scores(model, shop.tokenizer, text, layer=1)
        for (kind, model), what in zip(
            shop.others.items(),
            (
                "-slope * distance",
                "equal vectors, turned",
                "a number a bucket",
                "query @ E[distance]",
                "(query + v) @ W_r R",
            ),
            strict=True,
        )
    }
    title = f"what positions do to scores; what is learned, after {SHORT_STEPS} steps"
    return plots.position_scores_figure(scores, title=title, style=style)


def attention(shop: Workshop, style: Style) -> Figure:
    """All layers and heads."""
    found = insight.attention_of(shop.model, shop.tokenizer, TEXT)
    title = f"attention in “{TEXT}”"
    return plots.attention_figure(found.weights, found.labels, title=title, style=style)


def attention_head(shop: Workshop, style: Style) -> Figure:
    """One head, with the tokens."""
    found = insight.attention_of(shop.model, shop.tokenizer, TEXT, layer=1, head=2)
    title = "attention, layer 1, head 2"
    return plots.attention_figure(found.weights, found.labels, title=title, style=style)


def logit_lens(shop: Workshop, style: Style) -> Figure:
    """What each layer would say."""
    found = insight.logit_lens(shop.model, shop.tokenizer, TEXT)
    return plots.lens_figure(
        [row[-9:] for row in found.guesses],
        found.probabilities[:, -9:],
        found.labels[-9:],
        title="what each layer would say next",
        style=style,
    )


def sampling(shop: Workshop, style: Style) -> Figure:
    """The next token, step by step."""
    found = insight.next_token_of(shop.model, shop.tokenizer, TEXT, SAMPLING)
    return plots.sampling_figure(
        found.steps,
        found.labels,
        most_likely=found.ids,
        title=f"“{TEXT}” …",
        style=style,
    )


# Of the ten minutes in docs/training.md: after how many steps, and the validation loss.
TEN_MINUTES = {
    0: 8.997, 345: 5.488, 721: 5.317, 1108: 5.152, 1446: 5.190, 1801: 5.027,
    2161: 5.047, 2521: 4.981, 2881: 4.957, 3241: 4.908, 3601: 4.901,
}  # fmt: skip


def ten_minutes(shop: Workshop, style: Style) -> Figure:
    """As measured: to train anew takes ten minutes, and a text that is not here."""
    del shop
    steps, found = list(TEN_MINUTES), list(TEN_MINUTES.values())
    curve = plots.LossCurve(step_losses=[], val_steps=steps, val_losses=found)
    title = "Ten minutes of Tiny Shakespeare"
    return plots.losses_figure({"8,192 tokens": curve}, title=title, style=style)


def losses(shop: Workshop, style: Style) -> Figure:
    """Runs that differ in their positions."""
    runs = {kind: read_losses(shop.folder / kind) for kind in shop.others}
    title = f"{SHORT_STEPS} steps with each kind of positions"
    return plots.losses_figure(runs, title=title, style=style)


def parameters(shop: Workshop, style: Style) -> Figure:
    """Where the parameters of three presets are."""
    del shop
    names = ("gpt2-124m", "gpt2-1558m", "gpt3-175b")
    budgets = {name: parameter_budget(PRESETS[name]) for name in names}
    return plots.budget_figure(budgets, title="where the parameters are", style=style)


def store(shop: Workshop, style: Style) -> Figure:
    """The help topics as a store, a document each."""
    folder = shop.folder / "help-topics"
    if not folder.exists():
        files = shop.folder / "topics.jsonl"
        lines = (json.dumps({"text": topics[name]}) for name in sorted(topics))
        files.write_text("\n".join(lines), encoding="utf-8")
        build_store(files, folder, tokenizer="gpt2")
    return picture_of_store(folder, style=style)


def confusion(shop: Workshop, style: Style) -> Figure:
    """Which topic a line of the help texts is from, told by a head on frozen features."""
    classifier = shop.classifier
    right, total = int(classifier.confusion_.trace()), int(classifier.confusion_.sum())
    title = f"which help topic a line is from: {right} of {total} right"
    return plots.confusion_figure(classifier.confusion_, classifier.classes_, title, style=style)


def page(shop: Workshop) -> str:
    """The projection that zooms."""
    ids = shop.frequent[:1500]
    labels = insight.token_labels(shop.tokenizer, ids)
    title = f"{len(ids):,} tokens of Python's help texts"
    return plots.projection_page(insight.token_vectors(shop.model, ids), labels, title=title)


PICTURES: tuple[Callable[[Workshop, Style], Figure], ...] = (
    embedding_table,
    input_embeddings,
    projection,
    word_vectors,
    positions,
    positions_sinusoidal,
    position_scores,
    attention,
    attention_head,
    logit_lens,
    sampling,
    losses,
    ten_minutes,
    parameters,
    store,
    confusion,
)


def save(figure: Figure, file: Path) -> None:
    """As a PNG of 256 colours, a third of the size."""
    figure.savefig(file, dpi=130)
    with Image.open(file) as picture:
        image = picture.convert("RGB")
    few = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    colours, paper = few.getpalette() or [], 3 * few.getpixel((0, 0))
    colours[paper : paper + 3] = image.getpixel((0, 0))  # Exactly the page's, or it would be seen.
    few.putpalette(colours)
    few.save(file, optimize=True)


def main(prefixes: list[str]) -> None:
    """Draws the pictures whose names begin with one of `prefixes`, or all."""
    IMAGES.mkdir(exist_ok=True)
    # Sums in another order are other sums: so the number of processors does not show.
    torch.set_num_threads(1)

    def is_wanted(name: str) -> bool:
        return not prefixes or any(name.startswith(prefix) for prefix in prefixes)

    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(Path(folder))
        for picture in PICTURES:
            name = picture.__name__.replace("_", "-")
            if is_wanted(name):
                for style in get_args(Style):
                    save(picture(shop, style), IMAGES / f"{name}-{style}.png")
                print(name)
        if is_wanted("projection.html"):
            (IMAGES / "projection.html").write_text(page(shop), encoding="utf-8")
            print("projection.html")


if __name__ == "__main__":
    main(sys.argv[1:])
