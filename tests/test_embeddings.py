"""Vectors of texts against transformers, NumPy and the definition; `encode` against its tools."""

import copy
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch

import gptrs
from gptrs.config import GPTConfig, Pos
from gptrs.embeddings.embedder import Embedder, embed, embed_iter
from gptrs.embeddings.pooling import batches_of, windows_of
from gptrs.embeddings.pooling_kinds import Pooling
from gptrs.errors import ConfigError, DataError
from gptrs.model.gpt import GPTModel

POOLINGS = get_args(Pooling)
KINDS = get_args(Pos)
WORDS = ["the", "model", " reads", "tokens", "gives", "größer", "vector", "every", "text", "日本"]


def small_model(pos="learned", seed=0, **changes):
    torch.manual_seed(seed)
    shape = {"context_length": 12, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "pos": pos}
    return GPTModel(GPTConfig(**shape | changes))


def some_texts(seed, count=9, most_words=30):
    """Sentences of 1 word to several windows."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, most_words, count)
    return [" ".join(random.choice(WORDS, length)) for length in lengths]


def ids_of(text):
    return gptrs.get_tokenizer("gpt2").encode_ordinary(text)


def hidden_by_definition(model, ids, layer=-1, stride=None):
    """Hidden states of all tokens, window by window, float64 [n, D]."""
    length = model.cfg.context_length
    stride, start, rows = stride or length, 0, []
    while len(rows) < len(ids):
        window = torch.tensor([ids[start : start + length]])
        with torch.no_grad():
            states = model.eval()(window, return_hidden=True).hidden[layer][0]
        rows += states[len(rows) - start :].double().numpy().tolist()
        start += stride
    return np.array(rows)


def pooled(hidden, pooling):
    """What the docstring says, in NumPy."""
    if pooling == "weighted_mean":
        return np.average(hidden, axis=0, weights=np.arange(1, len(hidden) + 1))
    return {
        "mean": hidden.mean(0),
        "max": hidden.max(0),
        "last": hidden[-1],
        "cls": hidden[0],
    }[pooling]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("pos", KINDS)
def test_a_batch_equals_one_by_one_and_the_definition(pos, pooling):
    model, texts = small_model(pos), some_texts(KINDS.index(pos))
    together = embed(model, texts, pooling=pooling, normalize=False)
    alone = np.concatenate(
        [embed(model, [each], pooling=pooling, normalize=False) for each in texts]
    )
    expected = [pooled(hidden_by_definition(model, ids_of(text)), pooling) for text in texts]
    assert together.dtype == np.float32
    assert together.shape == (len(texts), model.cfg.emb_dim)
    np.testing.assert_allclose(together, alone, atol=2e-5)
    np.testing.assert_allclose(together, expected, atol=2e-5)


@pytest.mark.parametrize("seed", range(20))
def test_layers_strides_and_batches_of_any_size_give_what_the_definition_gives(seed):
    random = np.random.default_rng(seed)
    model = small_model(random.choice(KINDS), seed, n_layers=int(random.integers(1, 4)))
    layer = int(random.integers(-model.cfg.n_layers - 1, model.cfg.n_layers + 1))
    stride = int(random.integers(1, model.cfg.context_length + 1))
    pooling, texts = random.choice(POOLINGS), some_texts(seed, most_words=60)
    found = embed(
        model, texts, pooling=str(pooling), layer=layer, stride=stride, normalize=False,
        batch_tokens=int(random.integers(1, 100)),
    )  # fmt: skip
    states = (hidden_by_definition(model, ids_of(text), layer, stride) for text in texts)
    np.testing.assert_allclose(found, [pooled(each, pooling) for each in states], atol=5e-5)


def test_vectors_equal_those_of_transformers_gpt2(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = small_model(emb_dim=64, n_heads=1, n_layers=3, qkv_bias=True, context_length=64)
    model.save_pretrained(tmp_path, format="hf")
    theirs = transformers.GPT2Model.from_pretrained(tmp_path).eval()
    texts = some_texts(0, count=20)
    with torch.no_grad():
        states = [
            theirs(torch.tensor([ids_of(text)]), output_hidden_states=True).hidden_states
            for text in texts
        ]
    for layer in (0, 1, 2, 3, -1):
        expected = [each[layer][0].double().mean(0).numpy() for each in states]
        found = embed(tmp_path, texts, layer=layer, normalize=False)
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_blocks_after_the_layer_and_the_output_layer_are_not_computed():
    model = small_model(n_layers=3)
    called = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    embed(model, ["a text"], layer=1)
    assert "trf_blocks.0.ff" in called
    assert not {"trf_blocks.1.ff", "trf_blocks.2.ff", "final_norm", "out_head"} & set(called)
    called.clear()
    embed(model, ["a text"])
    assert {"trf_blocks.2.ff", "final_norm"} <= set(called)
    assert "out_head" not in called


def test_dropout_is_off_and_the_modes_and_gradients_stay_what_they_were():
    model = small_model(drop_rate=0.5).train()
    model.trf_blocks[0].eval()
    modes = [module.training for module in model.modules()]
    first, second = embed(model, ["some text"]), embed(model, ["some text"])
    np.testing.assert_array_equal(first, second)
    assert [module.training for module in model.modules()] == modes
    assert all(weight.grad is None for weight in model.parameters())


def test_vectors_have_length_one_unless_asked_otherwise():
    model, texts = small_model(), some_texts(1)
    scaled, plain = embed(model, texts), embed(model, texts, normalize=False)
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(
        scaled, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6
    )


def test_a_stream_longer_than_a_block_is_read_as_it_goes_and_keeps_its_order():
    model, read = small_model(), 0
    texts = [f"text {number}" for number in range(500)]

    def stream():
        nonlocal read
        for text in texts:
            read += 1
            yield text

    blocks = embed_iter(model, stream(), batch_tokens=16)
    assert read == 0
    first = next(blocks)
    assert len(first) <= read < len(texts)
    found = np.concatenate([first, *blocks])
    np.testing.assert_allclose(found, embed(model, texts), atol=2e-5)


def test_no_texts_give_no_vectors():
    assert embed(small_model(), []).shape == (0, 16)
    assert list(embed_iter(small_model(), iter(()))) == []


def test_special_tokens_in_a_text_are_text_unless_allowed():
    model = small_model()
    tokenizer = gptrs.get_tokenizer("gpt2")
    text = "one<|endoftext|>two"
    plain = pooled(hidden_by_definition(model, ids_of(text)), "mean")
    special = tokenizer.encode(text, allowed_special="all")
    with_special = pooled(hidden_by_definition(model, special), "mean")
    for own in (None, tokenizer.as_tiktoken()):
        found = embed(model, [text], tokenizer=own, normalize=False)[0]
        np.testing.assert_allclose(found, plain, atol=2e-5)
        found = embed(model, [text], tokenizer=own, normalize=False, allow_special=True)[0]
        np.testing.assert_allclose(found, with_special, atol=2e-5)


def test_bfloat16_comes_near_float32_and_leaves_the_weights_alone():
    model, texts = small_model(emb_dim=64), some_texts(3)
    before = copy.deepcopy(model.state_dict())
    exact, narrow = embed(model, texts), embed(model, texts, dtype="bfloat16")
    assert narrow.dtype == np.float32
    assert 0 < np.abs(exact - narrow).max() < 0.02
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_checkpoints_own_tokenizer_is_used(tmp_path):
    (tmp_path / "words.txt").write_text(" ".join(WORDS * 20))
    tokenizer = gptrs.train_tokenizer(tmp_path / "words.txt", 280)
    model = small_model(vocab_size=tokenizer.n_vocab)
    gptrs.save_checkpoint(model, tmp_path / "model", tokenizer=tokenizer)
    found = embed(tmp_path / "model", ["the model reads"], normalize=False)[0]
    ids = tokenizer.encode_ordinary("the model reads")
    np.testing.assert_allclose(found, hidden_by_definition(model, ids).mean(0), atol=2e-5)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", "iterable of str, such as a list of them; found one str"),
        (3, "found one int"),
        (["a", ""], "text 1 is empty"),
        (["a", "b", 5], "text 2 is of type int, not str: 5"),
        (["a", None], "text 1 is of type NoneType"),
        ([b"a"], "text 0 is of type bytes"),
    ],
)
def test_what_is_no_text_is_refused_by_its_number(texts, message):
    with pytest.raises(DataError, match=message):
        embed(small_model(), texts)


def test_the_number_of_an_empty_text_counts_through_all_blocks():
    texts = ["word " * 2000, "word " * 2000, ""]
    with pytest.raises(DataError, match="text 2 is empty"):
        embed(small_model(), texts, batch_tokens=16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "sum"}, "pooling is one of mean, last, max, cls, weighted_mean; found 'sum'"),
        ({"layer": 3}, r"layer is 3; the model has hidden states 0..2, or -3..-1 from the end"),
        ({"layer": -4}, "layer is -4"),
        ({"layer": 1.0}, "layer is 1.0"),
        ({"stride": 13}, "stride is 13, more than the model's context_length 12"),
        ({"stride": 0}, "stride is 0; it must be an int, 1 or more"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"dtype": "float8"}, "unknown dtype 'float8'"),
        ({"dtype": torch.int64}, r"dtype is torch.int64; matmuls compute in"),
        ({"tokenizer": object()}, "a tokenizer has encode and decode"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Embedder(small_model(), **settings)


def test_models_and_tokenizers_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="a model is a GPTModel"):
        embed(torch.nn.Linear(2, 2), ["a"])
    with pytest.raises(ConfigError, match="the tokenizer has 50257 ids, and the model knows 100"):
        embed(small_model(vocab_size=100), ["a"])
    with pytest.raises(gptrs.errors.CheckpointError, match="no such file or folder"):
        embed(tmp_path / "none", ["a"])
    with pytest.raises(ConfigError, match=r"weights are torch.bfloat16"):
        embed(small_model().bfloat16(), ["a"], dtype=torch.float32)


def test_encode_returns_what_sentence_transformers_returns():
    model, texts = Embedder(small_model(), normalize=False), some_texts(4)
    vectors = model.embed(texts)
    np.testing.assert_array_equal(model.encode(texts, batch_size=2), vectors)
    assert model.encode(texts[0]).shape == (16,)
    tensors = model.encode(texts, convert_to_tensor=True)
    assert isinstance(tensors, torch.Tensor)
    np.testing.assert_array_equal(tensors.numpy(), vectors)
    rows = model.encode(np.array(texts), convert_to_numpy=False)
    assert [row.tolist() for row in rows] == vectors.tolist()
    units = model.encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(units, Embedder(model.model).embed(texts), atol=1e-6)
    prompted = model.encode_query(texts, prompt="query: ")
    np.testing.assert_array_equal(prompted, model.embed([f"query: {text}" for text in texts]))
    cut = Embedder(model.model).encode_document(texts, truncate_dim=5)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-6)
    cosines = units @ units.T
    np.testing.assert_allclose(model.similarity(vectors, tensors), cosines, atol=1e-6)
    pairs = model.similarity_pairwise(vectors, vectors[::-1].copy())
    np.testing.assert_allclose(pairs, np.diag(cosines[::-1]), atol=1e-6)
    assert model.get_sentence_embedding_dimension() == 16
    assert model.max_seq_length == 12


@pytest.mark.parametrize("option", [{"precision": "int8"}, {"prompt_name": "query"}])
def test_encode_refuses_what_would_change_the_vectors(option):
    with pytest.raises(ConfigError, match=f"{next(iter(option))} is "):
        Embedder(small_model()).encode(["a"], **option)


def test_sentence_transformers_evaluators_give_what_numpy_gives():
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    stats = pytest.importorskip("scipy.stats")
    model = Embedder(small_model())
    first, second = some_texts(5), some_texts(6)
    scores = np.random.default_rng(0).random(len(first))
    evaluator = evaluation.EmbeddingSimilarityEvaluator(first, second, list(scores))
    cosines = (model.embed(first) * model.embed(second)).sum(1)
    found = evaluator(model)["spearman_cosine"]
    assert found == pytest.approx(stats.spearmanr(scores, cosines).statistic, abs=1e-6)
    corpus = {str(number): text for number, text in enumerate(first)}
    relevant = {number: {number} for number in corpus}
    retrieval = evaluation.InformationRetrievalEvaluator(corpus, corpus, relevant)
    assert retrieval(model)["cosine_accuracy@1"] == 1.0


@pytest.mark.parametrize("seed", range(20))
def test_sentences_that_share_words_are_nearer_than_others_to_a_lookup(seed):
    """With layer 0 and no positions, a vector is the mean of its tokens' embeddings."""
    model, (text, *_) = small_model("none", seed), some_texts(seed)
    weight = model.tok_emb.weight.detach().numpy()
    found = embed(model, [text], layer=0, normalize=False)[0]
    np.testing.assert_allclose(found, weight[ids_of(text)].mean(0), atol=1e-5)


def test_every_pair_of_pooling_and_layer_is_reproducible():
    model, texts = small_model(), some_texts(7)
    for pooling, layer in product(POOLINGS, range(3)):
        first = embed(model, texts, pooling=pooling, layer=layer)
        np.testing.assert_array_equal(first, embed(model, texts, pooling=pooling, layer=layer))


@pytest.mark.parametrize("seed", range(20))
def test_batches_have_all_windows_and_little_padding(seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 100, 200).tolist()
    windows = [
        window
        for text, length in enumerate(lengths)
        for window in windows_of(text, length, context_length=64, stride=40)
    ]
    most_tokens, most_padding = (int(most) for most in random.integers(1, 2000, 2))
    batches = list(batches_of(windows, most_tokens, most_padding))
    assert sorted(window for batch in batches for window in batch) == sorted(windows)
    for batch in batches:
        sizes = [window.end - window.start for window in batch]
        padded = max(sizes) * len(batch)
        assert max(sizes) == sizes[0] <= 64
        assert len(batch) == 1 or padded <= most_tokens
        assert padded - sum(sizes) <= most_padding
    counted = [place for window in windows for place in range(window.new, window.end)]
    assert len(counted) == sum(lengths)


def test_a_fingerprint_tells_apart_what_embeds_differently_and_nothing_else():
    model = small_model()
    own = Embedder(model).identity()["fingerprint"]
    assert Embedder(copy.deepcopy(model).train()).identity()["fingerprint"] == own
    tiktoken = gptrs.get_tokenizer("gpt2").as_tiktoken()
    assert Embedder(model, tokenizer=tiktoken).identity()["fingerprint"] == own
    others = [
        Embedder(small_model(seed=1)),
        Embedder(small_model(context_length=13)),
        Embedder(small_model(n_heads=4)),
        Embedder(small_model("none")),
        Embedder(model, layer=1),
        Embedder(copy.deepcopy(model).bfloat16()),
    ]
    found = {own, *(other.identity()["fingerprint"] for other in others)}
    assert len(found) == 1 + len(others)
