"""From a text to a model that writes, with tokenizers of one's own."""

import copy
import re

import pytest
import tokenizers
import torch

import gptrs
from gptrs.config import GPTConfig
from gptrs.text import corpus
from gptrs.text.reading import help_topics
from gptrs.training.config import TrainingConfig
from gptrs.training.trainer import train

TEXT = re.sub(r"[^\x20-\x7e\n]", "", help_topics())[:100_000]
CONTEXT = 32


@pytest.fixture(scope="module", params=["char", "bpe"])
def tokenizer(request, tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(TEXT)
    vocab_size = {"char": None, "bpe": 512}[request.param]
    return gptrs.train_tokenizer(file, vocab_size, kind=request.param)


@pytest.fixture(scope="module")
def run(tokenizer, tmp_path_factory):
    """What training told, and the folder that it left."""
    torch.manual_seed(0)
    model = gptrs.GPTModel(
        GPTConfig(
            vocab_size=tokenizer.n_vocab,
            context_length=CONTEXT,
            emb_dim=32,
            n_heads=2,
            n_layers=1,
            drop_rate=0.0,
            init="gpt2",
        )
    )
    run_dir = tmp_path_factory.mktemp("run")
    config = TrainingConfig(
        steps=200,
        batch_tokens=16 * CONTEXT,
        learning_rate=1e-2,
        num_evaluations=2,
        device="cpu",
        dtype="float32",
    )
    tokens = corpus.tokenize_documents([TEXT], tokenizer)
    return train(model, tokens, config, run_dir=run_dir, tokenizer=tokenizer), run_dir


def test_a_small_vocabulary_is_learned_beyond_how_common_its_tokens_are(run):
    result, _ = run
    assert result.last.val_loss < 0.9 * result.unigram_loss
    assert 0 < result.last.bits_per_byte < result.unigram_bits_per_byte < 8


def test_the_checkpoint_writes_text_with_its_own_tokenizer(run, tokenizer):
    model, saved = gptrs.load_checkpoint(run[1])
    assert saved == tokenizer
    assert model.cfg.vocab_size == saved.n_vocab
    generator = gptrs.Generator(model, saved)
    [completion] = generator("The for statement", 60, seed=1)
    assert completion.text == saved.decode(completion.token_ids)
    # Bytes that no text has are as unlikely as any other token that was never seen.
    assert set(completion.text) <= {*TEXT, "\ufffd"}
    pieces = list(generator.stream("The for statement", 60, seed=1))
    assert "".join(pieces) == completion.text
    theirs = tokenizers.Tokenizer.from_file(str(run[1] / "checkpoint" / "tokenizer.json"))
    assert theirs.encode("The for statement").ids == saved.encode("The for statement")


def test_narrower_weights_find_text_as_likely_and_rust_writes_what_pytorch_does(run):
    model, tokenizer = gptrs.load_checkpoint(run[1])
    unseen = re.sub(r"[^\x20-\x7e\n]", "", help_topics())[100_000:140_000]

    def perplexity(model, **settings):
        [score] = gptrs.Generator(model, tokenizer, **settings).score(unseen)
        assert score.engine.startswith("native")
        return score.perplexity

    plain = perplexity(model)
    assert plain < tokenizer.n_vocab / 3
    assert perplexity(copy.deepcopy(model).bfloat16()) == pytest.approx(plain, rel=1e-3)
    assert perplexity(model, dtype="int8") == pytest.approx(plain, rel=5e-3)
    prompts = unseen.split("\n\n")[:30]
    ours, theirs = (
        gptrs.Generator(model, tokenizer, engine=engine)(prompts, 20, temperature=0.0)
        for engine in ("native", "torch")
    )
    assert [each.token_ids for each in ours] == [each.token_ids for each in theirs]


def test_the_books_functions_take_the_tokenizer(run, tokenizer, capsys):
    model, _ = gptrs.load_checkpoint(run[1])
    loader = gptrs.create_dataloader_v1(
        TEXT[:5000], max_length=CONTEXT, stride=CONTEXT, tokenizer=tokenizer
    )
    assert loader.dataset.tokens.tolist() == tokenizer.encode(TEXT[:5000])
    loss = gptrs.calc_loss_loader(loader, model, "cpu", num_batches=4)
    assert loss < run[0].unigram_loss
    ids = gptrs.text_to_token_ids("The for", tokenizer)
    assert gptrs.token_ids_to_text(ids, tokenizer) == "The for"
    gptrs.generate_and_print_sample(model, tokenizer, "cpu", "The for")
    assert capsys.readouterr().out.startswith("The for")


def test_a_tokenizer_without_an_end_of_text_works_everywhere(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    tokenizer = gptrs.train_tokenizer(tmp_path / "text.txt", 300, special_tokens=())
    torch.manual_seed(0)
    shape = {"context_length": 8, "emb_dim": 8, "n_heads": 2, "n_layers": 1}
    model = gptrs.GPTModel(GPTConfig(vocab_size=300, **shape))
    tokens = corpus.tokenize_documents([TEXT[:3000], TEXT[3000:6000]], tokenizer)
    assert tokenizer.decode(tokens) == TEXT[:6000]
    config = TrainingConfig(steps=2, batch_tokens=16, device="cpu", dtype="float32")
    train(model, tokens, config, run_dir=tmp_path / "run", tokenizer=tokenizer)
    marked = "a<|endoftext|>b"
    for either in (tokenizer, tokenizer.as_tiktoken()):
        [completion] = gptrs.Generator(model, either)(marked, 5, seed=0)
        assert completion.finish_reason == "length"
        ids = gptrs.text_to_token_ids(marked, either)
        assert gptrs.token_ids_to_text(ids, either) == marked
        dataset = gptrs.GPTDatasetV1(marked * 9, either, max_length=4, stride=4)
        assert tokenizer.decode(dataset.tokens) == marked * 9
