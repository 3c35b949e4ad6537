"""Vectors of words as token embeddings, against matching, PCA and means done plainly."""

import pydoc_data.topics
import random

import numpy as np
import pytest
import torch
from torch import nn

import gptrs
from gptrs.embeddings.token_vectors import ProjectedEmbedding, fold_projection, load_token_vectors
from gptrs.embeddings.word2vec import token_names
from gptrs.embeddings.word_vectors import WordVectors
from gptrs.errors import ConfigError, DataError, SourceError

SEEDS = range(20)
GPT2 = gptrs.get_tokenizer("gpt2")
SMALL = gptrs.train_tokenizer([pydoc_data.topics.__file__], 2000)
SHAPE = {
    "vocab_size": 50257,
    "context_length": 16,
    "emb_dim": 8,
    "n_heads": 2,
    "n_layers": 1,
    "drop_rate": 0.0,
    "qkv_bias": False,
}
WORDS = ["the", "house", "Paris", "unbelievably", "中", "x", "paris", "zebra", "12", "don't"]


def gpt(seed=0, **changes):
    torch.manual_seed(seed)
    return gptrs.GPTModel(SHAPE | changes).eval()


def word_vectors(columns=8, words=WORDS, seed=0):
    random = np.random.default_rng(seed)
    return WordVectors(words, random.standard_normal((len(words), columns), dtype=np.float32))


def token(text):
    (found,) = GPT2.encode(text)
    return found


def row(model, text):
    return model.tok_emb(torch.tensor(token(text))).detach().numpy()


@pytest.fixture(scope="module")
def model():
    return gpt()


def test_tokens_get_the_vectors_of_their_text_with_and_without_the_space(model):
    vectors = word_vectors()
    coverage = load_token_vectors(model, GPT2, vectors)
    for word in ("the", "house", "x", "12"):
        assert np.array_equal(row(model, word), vectors[word])
        assert np.array_equal(row(model, f" {word}"), vectors[word])
    assert coverage.exact == sum(len(GPT2.encode(word)) == 1 for word in WORDS)
    assert coverage.without_space == sum(len(GPT2.encode(f" {word}")) == 1 for word in WORDS)
    assert coverage.matched == coverage.exact + coverage.without_space
    assert coverage.share == coverage.matched / 50257
    assert f"{coverage.matched} of 50,257 tokens" in str(coverage)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_no_word_matches_is_drawn_from_the_matched_mean_and_deviation(seed):
    columns = 8
    draw = random.Random(seed)
    texts = [SMALL.decode([number]) for number in draw.sample(range(300, 1900), 500)]
    words = sorted({text.strip() for text in texts if "\ufffd" not in text and text.strip()})
    vectors = word_vectors(columns, words, seed)
    vectors = WordVectors(words, vectors.vectors * 3 + np.arange(columns))
    model = gpt(vocab_size=2000)
    coverage = load_token_vectors(model, SMALL, vectors, seed=seed)
    known = {*words}
    is_matched = np.zeros(2000, dtype=bool)
    for number in range(2000):
        text = SMALL.decode_bytes([number]).decode(errors="replace")
        is_matched[number] = text in known or text.removeprefix(" ") in known
    assert coverage.matched == is_matched.sum()
    table = model.tok_emb.weight.detach().numpy()
    matched, drawn = table[is_matched], table[~is_matched]
    np.testing.assert_allclose(drawn.mean(0), matched.mean(0), atol=0.5)
    np.testing.assert_allclose(drawn.std(0), matched.std(0), rtol=0.15)
    assert coverage.std == pytest.approx(matched.std())
    again, other = gpt(vocab_size=2000), gpt(vocab_size=2000)
    load_token_vectors(again, SMALL, vectors, seed=seed)
    load_token_vectors(other, SMALL, vectors, seed=seed + 1)
    assert torch.equal(again.tok_emb.weight, model.tok_emb.weight)
    assert not torch.equal(other.tok_emb.weight, model.tok_emb.weight)


def test_lower_case_is_tried_last_and_only_if_asked(model):
    vectors = word_vectors(words=["house", "Paris", "paris"])
    plain = load_token_vectors(model, GPT2, vectors)
    assert not np.array_equal(row(model, " House"), vectors["house"])
    lower = load_token_vectors(model, GPT2, vectors, lower=True)
    assert np.array_equal(row(model, " House"), vectors["house"])
    assert np.array_equal(row(model, " Paris"), vectors["Paris"])
    assert plain.lower == 0 < lower.lower
    assert lower.matched == plain.matched + lower.lower


def test_vectors_of_tokens_find_their_own_tokens(model):
    ids = [262, 198, 1820, 220, 220 + 1, 30000]
    vectors = word_vectors(words=token_names(GPT2, ids))
    coverage = load_token_vectors(model, GPT2, vectors)
    for place, number in enumerate(ids):
        found = model.tok_emb(torch.tensor(number)).detach().numpy()
        assert np.array_equal(found, vectors.vectors[place])
    assert coverage.exact == len(ids)


@pytest.mark.parametrize("seed", SEEDS)
def test_pieces_get_the_mean_of_the_words_that_they_are_in(seed):
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyzäé"
    words = sorted({"".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(50)})
    vectors = word_vectors(words=words, seed=seed)
    expected = {}
    for word in words:
        for ids in (SMALL.encode(word), SMALL.encode(f" {word}")):
            for piece in ids:
                expected.setdefault(piece, []).append(vectors[word])
    model = gpt(vocab_size=2000)
    coverage = load_token_vectors(model, SMALL, vectors, average_pieces=True)
    own = {
        number for number in expected
        if SMALL.decode_bytes([number]).decode(errors="replace").removeprefix(" ") in vectors
    }  # fmt: skip
    assert coverage.averaged == len(expected) - len(own)
    for number, of_words in expected.items():
        found = model.tok_emb(torch.tensor(number)).detach().numpy()
        if number not in own:
            np.testing.assert_allclose(found, np.mean(of_words, axis=0), rtol=1e-4, atol=1e-5)
    tiktoken = gpt(vocab_size=2000)
    assert (
        load_token_vectors(tiktoken, SMALL.as_tiktoken(), vectors, average_pieces=True) == coverage
    )
    assert torch.equal(tiktoken.tok_emb.weight, model.tok_emb.weight)


@pytest.mark.parametrize("seed", SEEDS)
def test_more_columns_become_the_principal_components(seed):
    words = [SMALL.decode([number]).strip() for number in range(300, 900)]
    words = sorted({word for word in words if len(SMALL.encode(word)) == 1})
    draw = np.random.default_rng(seed)
    scales = draw.uniform(0.1, 5, 20)
    vectors = WordVectors(words, draw.standard_normal((len(words), 20)) * scales + 3)
    model = gpt(vocab_size=2000)
    coverage = load_token_vectors(model, SMALL, vectors)
    ids = torch.tensor([SMALL.encode(word)[0] for word in words])
    found = model.tok_emb(ids).detach().numpy()
    matched = np.concatenate([vectors.vectors, *(
        vectors.vectors[[place]] for place, word in enumerate(words)
        if len(SMALL.encode(f" {word}")) == 1
    )])  # fmt: skip
    centred = matched - matched.mean(0)
    _, singular, directions = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    expected = (vectors.vectors - matched.mean(0)) @ directions[:8].T
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-2, atol=2e-2)
    assert coverage.explained == pytest.approx((singular[:8] ** 2).sum() / (singular**2).sum())
    assert "PCA makes 8 columns of their 20" in str(coverage)


@pytest.mark.parametrize("seed", SEEDS)
def test_fewer_columns_keep_every_length_and_angle(seed):
    vectors = word_vectors(columns=seed % 7 + 1, words=list("abcdefghij"), seed=seed)
    model = gpt(vocab_size=2000)
    coverage = load_token_vectors(model, SMALL, vectors, seed=seed)
    ids = [SMALL.encode(letter)[0] for letter in vectors.words]
    found, given = model.tok_emb.weight.detach().numpy()[ids], vectors.vectors
    np.testing.assert_allclose(found @ found.T, given @ given.T, rtol=1e-4, atol=1e-5)
    assert "lengths and angles stay" in str(coverage)
    assert coverage.explained is None


@pytest.mark.parametrize("columns", [3, 8, 20])
def test_a_learned_projection_learns_with_the_model_and_folds_away(columns):
    vectors = word_vectors(columns)
    model = gpt()
    load_token_vectors(model, GPT2, vectors, project="learned", freeze=True)
    assert isinstance(model.tok_emb, ProjectedEmbedding)
    assert torch.equal(model.tok_emb.weight[token("the")], torch.tensor(vectors["the"]))
    learning = [p for p in model.parameters() if p.requires_grad]
    assert id(model.tok_emb.weight) not in map(id, learning)
    before = model.tok_emb.projection.detach().clone()
    ids = torch.tensor([[token("the"), token("house"), token("x")]])
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    nn.functional.cross_entropy(model(ids)[0], ids[0]).backward()
    optimizer.step()
    assert not torch.equal(model.tok_emb.projection, before)
    with torch.no_grad():
        expected = model(ids)
    written = gptrs.Generator(model)("the house", 5, temperature=0)[0].token_ids
    fold_projection(model)
    assert type(model.tok_emb) is nn.Embedding
    with torch.no_grad():
        torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-5)
    assert gptrs.Generator(model)("the house", 5, temperature=0)[0].token_ids == written
    gpt().load_state_dict(model.state_dict())


def test_a_folded_model_can_be_saved_and_read(tmp_path, model):
    load_token_vectors(model, GPT2, word_vectors(5), project="learned")
    fold_projection(model)
    model.save_pretrained(tmp_path)
    again = gptrs.GPTModel.from_pretrained(tmp_path)
    assert torch.equal(again.tok_emb.weight, model.tok_emb.weight)


def test_frozen_vectors_do_not_learn_and_others_do(model):
    load_token_vectors(model, GPT2, word_vectors(), freeze=True)
    assert not model.tok_emb.weight.requires_grad
    load_token_vectors(model, GPT2, word_vectors())
    assert model.tok_emb.weight.requires_grad


def test_in_a_tied_model_the_vectors_are_the_output_layers_too():
    model = gpt(tie_embeddings=True, init="gpt2")
    coverage = load_token_vectors(model, GPT2, word_vectors(), std=0.02)
    assert model.out_head.weight is model.tok_emb.weight
    assert coverage.std == pytest.approx(0.02, rel=1e-3)
    found, vectors = row(model, "the"), word_vectors()
    cosine = found @ vectors["the"] / np.linalg.norm(found) / np.linalg.norm(vectors["the"])
    assert cosine == pytest.approx(1)


def test_a_padded_vocabulary_is_drawn_beyond_the_tokenizer():
    model = gpt(vocab_size=50304)
    coverage = load_token_vectors(model, GPT2, word_vectors())
    assert coverage.num_tokens == 50304
    assert model.tok_emb.weight[50257:].isfinite().all()


def test_a_file_is_read_and_a_missing_or_cut_one_is_refused(tmp_path, model):
    path = word_vectors().save(tmp_path / "vectors.bin")
    assert load_token_vectors(model, GPT2, path).exact > 0
    path.write_bytes(path.read_bytes()[:-5])
    for wrong in (path, tmp_path / "none.txt"):
        with pytest.raises(SourceError, match=wrong.name):
            load_token_vectors(model, GPT2, wrong)


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"project": "svd"}, {}, 'project is "pca", "learned" or None'),
        ({"std": 0}, {}, "std is above 0"),
        ({"project": None}, {}, "have 5 columns, and the model's emb_dim is 8"),
        ({"project": "learned"}, {"tie_embeddings": True, "init": "gpt2"}, "not tied"),
        ({}, {"vocab_size": 61}, "vocab_size 61, and the tokenizer has 50257 ids"),
    ],
)
def test_what_cannot_be_is_refused_and_the_model_is_as_before(options, changes, message):
    model = gpt(**changes)
    before = model.tok_emb.weight.clone()
    with pytest.raises(ConfigError, match=message):
        load_token_vectors(model, GPT2, word_vectors(5), **options)
    assert torch.equal(model.tok_emb.weight, before)


def test_words_of_which_none_is_a_token_are_refused(model):
    with pytest.raises(DataError, match="no token has a vector: the words are such as"):
        load_token_vectors(model, GPT2, word_vectors(words=["qqqqqzzzz", "中中中中"]))


def test_a_second_projection_on_top_of_one_and_folding_none_are_refused():
    model = gpt()
    with pytest.raises(ConfigError, match="no learned projection"):
        fold_projection(model)
    load_token_vectors(model, GPT2, word_vectors(5), project="learned")
    with pytest.raises(ConfigError, match="fold_projection first"):
        load_token_vectors(model, GPT2, word_vectors())
