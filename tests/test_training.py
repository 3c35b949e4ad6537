"""`gptrs.training.book` against the book's own package."""

import math
from typing import get_args

import matplotlib as mpl
import pytest
import torch

mpl.use("agg")

from llms_from_scratch import ch02, ch04, ch05

import gptrs
from gptrs.config import Pos
from gptrs.training import book as training

TINY = {
    "vocab_size": 50257,
    "context_length": 16,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
TEXT = "Every effort moves you a little further, and no effort is ever lost on the way. " * 12


@pytest.fixture(autouse=True)
def book_tokenizer_without_network(monkeypatch):
    encoding = gptrs.get_tokenizer("gpt2").as_tiktoken()
    monkeypatch.setattr(ch02.tiktoken, "get_encoding", lambda name: encoding)
    return encoding


def train(create_dataloader, model_class, train_model_simple, tokenizer):
    """The book's main program, with either package's parts."""
    torch.manual_seed(123)
    loaders = [
        create_dataloader(
            part, batch_size=2, max_length=16, stride=16, shuffle=shuffle, drop_last=shuffle
        )
        for part, shuffle in ((TEXT[:700], True), (TEXT[700:], False))
    ]
    model = model_class(TINY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.004, weight_decay=0.1)
    torch.manual_seed(123)
    return train_model_simple(
        model, *loaders, optimizer, torch.device("cpu"),
        num_epochs=4, eval_freq=3, eval_iter=2, start_context="Every effort", tokenizer=tokenizer,
    )  # fmt: skip


def test_a_seeded_run_with_dropout_and_shuffling_gives_the_books_losses_and_lines(
    capsys, book_tokenizer_without_network
):
    tokenizer = book_tokenizer_without_network
    ours = train(gptrs.create_dataloader_v1, gptrs.GPTModel, gptrs.train_model_simple, tokenizer)
    our_lines = capsys.readouterr().out
    book = train(ch02.create_dataloader_v1, ch04.GPTModel, ch05.train_model_simple, tokenizer)
    assert len(book[0]) >= 4
    assert book[0][0] - book[0][-1] > 1
    torch.testing.assert_close(ours, book, rtol=1e-5, atol=1e-5)
    assert our_lines == capsys.readouterr().out


@pytest.mark.parametrize(
    "make", [lambda: ch04.GPTModel(TINY), *(
        lambda pos=pos: gptrs.GPTModel(TINY | {"pos": pos}) for pos in get_args(Pos)
    )]
)  # fmt: skip
def test_a_sample_is_printed_whatever_the_model_knows_places_by(
    make, capsys, book_tokenizer_without_network
):
    torch.manual_seed(0)
    model = make()
    context = "Every effort moves you"
    training.generate_and_print_sample(model, book_tokenizer_without_network, "cpu", context)
    printed = capsys.readouterr().out
    assert printed.startswith(context)
    assert printed.count("\n") == 1
    assert model.training
    ids = gptrs.text_to_token_ids(context, book_tokenizer_without_network)
    expected = gptrs.generate_text_simple(model.eval(), ids, 50, context_size=16)
    text = gptrs.token_ids_to_text(expected, book_tokenizer_without_network)
    assert printed == text.replace("\n", " ") + "\n"


def test_an_empty_loader_has_no_loss():
    assert math.isnan(training.calc_loss_loader([], torch.nn.Identity(), "cpu"))


@pytest.mark.parametrize("num_batches", [None, 1, 2, 99])
def test_the_loss_of_a_loader_is_the_books(num_batches):
    torch.manual_seed(0)
    model = ch04.GPTModel(TINY | {"vocab_size": 40}).eval()
    batches = [tuple(torch.randint(0, 40, (2, 2, 16))) for _ in range(3)]
    assert training.calc_loss_loader(batches, model, "cpu", num_batches) == pytest.approx(
        ch05.calc_loss_loader(batches, model, "cpu", num_batches), rel=1e-6
    )


def test_evaluation_uses_no_dropout_and_leaves_the_model_training():
    torch.manual_seed(0)
    model = gptrs.GPTModel(TINY | {"vocab_size": 40, "drop_rate": 0.5})
    batches = [tuple(torch.randint(0, 40, (2, 2, 16)))]
    losses = [training.evaluate_model(model, batches, batches, "cpu", 1) for _ in range(2)]
    assert losses[0] == losses[1]
    assert losses[0][0] == losses[0][1]
    assert model.training


def test_the_loss_is_computed_in_the_weights_dtype():
    model = gptrs.GPTModel(TINY | {"vocab_size": 40}).double()
    loss = training.calc_loss_batch(*torch.randint(0, 40, (2, 2, 16)), model, "cpu")
    assert loss.dtype == torch.float64


def test_plot_losses_saves_the_books_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gptrs.plot_losses(torch.linspace(0, 2, 3), [10, 20, 30], [3.0, 2.0, 1.0], [3.0, 2.5, 2.2])
    assert (tmp_path / "loss-plot.pdf").read_bytes().startswith(b"%PDF")
