"""Exact search against NumPy's sort, the graph against exact search, the folder against damage."""

import json
import shutil

import numpy as np
import pytest
import torch

import gptrs
from gptrs.config import GPTConfig
from gptrs.embeddings.embedder import Embedder
from gptrs.embeddings.nearest import BLOCK_ROWS, Graph, exact_nearest, recall
from gptrs.embeddings.passages import Passage
from gptrs.embeddings.vector_index import VectorIndex
from gptrs.embeddings.vector_index_building import build_index
from gptrs.errors import ConfigError, DataError, MissingExtraError, SourceError, StoreError
from gptrs.model.gpt import GPTModel

PASSAGES = [
    Passage(
        f"passage {number} of {'ab'[number % 2]}\n\n\u2028 \ud800",
        f"f{number % 3}.txt",
        number + 1,
        99,
    )
    for number in range(30)
]


def small_model(seed=0):
    torch.manual_seed(seed)
    return GPTModel(GPTConfig(context_length=16, emb_dim=8, n_heads=2, n_layers=1))


@pytest.fixture(scope="module")
def embedder():
    return Embedder(small_model(), layer=0)


@pytest.fixture
def index(tmp_path, embedder):
    return build_index(tmp_path / "index", iter(PASSAGES), embedder)


def units(random, shape):
    vectors = random.standard_normal(shape, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("seed", range(20))
def test_exact_search_finds_what_a_full_sort_finds(seed):
    random = np.random.default_rng(seed)
    # Small whole numbers: products tie, and equal ones come in the order of the rows.
    vectors = random.integers(-3, 4, (int(random.integers(1, 500)), 4)).astype(np.float32)
    queries = random.integers(-3, 4, (int(random.integers(1, 5)), 4)).astype(np.float32)
    top = int(random.integers(1, len(vectors) + 1))
    scores = queries @ vectors.T
    found = exact_nearest(vectors, queries, top)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    np.testing.assert_array_equal(found.scores, np.take_along_axis(scores, best, 1))
    np.testing.assert_array_equal(np.take_along_axis(scores, found.rows, 1), found.scores)
    assert all(len(set(rows)) == top for rows in found.rows.tolist())


def test_exact_search_goes_through_all_blocks():
    vectors = np.zeros((2 * BLOCK_ROWS + 5, 2), np.float32)
    expected = [2 * BLOCK_ROWS + 4, BLOCK_ROWS, 7]
    vectors[expected, 0] = [3, 2, 1]
    found = exact_nearest(vectors, np.array([[1, 0]], np.float32), 3)
    assert found.rows.tolist() == [expected]
    assert found.scores.tolist() == [[3, 2, 1]]


def test_a_built_index_opens_with_numpy_and_json_alone(index, embedder):
    vectors = np.load(index.directory / "vectors.npy")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, embedder.embed([each.text for each in PASSAGES]), atol=1e-6)
    with (index.directory / "passages.jsonl").open("rb") as file:
        lines = [json.loads(line.decode("utf-8", "surrogatepass")) for line in file]
    assert [Passage(**line) for line in lines] == PASSAGES
    facts = json.loads((index.directory / "index.json").read_text())
    assert (facts["num_passages"], facts["dim"]) == (len(PASSAGES), 8)
    assert (facts["settings"]["pooling"], facts["settings"]["layer"]) == ("mean", -2)
    names = {path.name for path in index.directory.iterdir()}
    assert names == {"index.json", "passages.jsonl", "vectors.npy"}


def test_a_search_finds_each_passage_by_its_own_text(index, embedder):
    opened = VectorIndex.open(index.directory)
    for passage in PASSAGES:
        best, second = opened.search(embedder, passage.text, top=2)
        assert best.passage == passage
        assert best.score == pytest.approx(1, abs=1e-5)
        assert second.score < best.score
    assert len(opened.search(embedder, "any", top=99)) == len(PASSAGES)


def test_passages_of_many_blocks_keep_their_order(tmp_path):
    narrow = Embedder(small_model(), batch_tokens=1)
    index = build_index(tmp_path / "index", iter(PASSAGES), narrow)
    np.testing.assert_allclose(index.vectors, narrow.embed([p.text for p in PASSAGES]), atol=1e-5)
    assert index.passages(range(len(PASSAGES))) == PASSAGES


def test_another_model_or_other_settings_are_refused_by_name(tmp_path, index):
    with pytest.raises(ConfigError, match=r"was made with vocab_size .*; the model here is .*emb"):
        index.search(Embedder(small_model(seed=1), layer=0), "a")
    with pytest.raises(ConfigError, match="made with pooling 'mean'; the embedder has 'max'"):
        index.search(Embedder(small_model(), layer=0, pooling="max"), "a")
    # What is behind the layer does not count, and so may have been trained on.
    trained = small_model()
    torch.nn.init.zeros_(trained.out_head.weight)
    torch.nn.init.zeros_(trained.trf_blocks[0].norm1.scale)
    assert index.search(Embedder(trained, layer=0), "a")
    torch.nn.init.zeros_(trained.tok_emb.weight)
    with pytest.raises(ConfigError, match="was made with"):
        index.search(Embedder(trained, layer=0), "a")


def test_an_index_made_of_a_folders_model_names_the_folder(tmp_path):
    for seed in (0, 1):
        gptrs.save_checkpoint(small_model(seed), tmp_path / f"model-{seed}")
    index = build_index(tmp_path / "index", PASSAGES, Embedder(tmp_path / "model-0"))
    assert index.search(Embedder(tmp_path / "model-0"), "a")
    assert index.search(Embedder(small_model()), "a")
    with pytest.raises(ConfigError, match=r"made with \S*model-0 .*here is \S*model-1 "):
        index.search(Embedder(tmp_path / "model-1"), "a")


def test_an_index_replaces_an_older_one_and_nothing_else(tmp_path, index, embedder):
    (index.directory / "notes.txt").write_text("mine")
    again = build_index(index.directory, PASSAGES[:3], embedder)
    assert len(again.vectors) == 3
    assert (index.directory / "notes.txt").read_text() == "mine"
    (index.directory / "index.json").unlink()
    with pytest.raises(ConfigError, match=r"is no index, and has notes.txt in it"):
        build_index(index.directory, PASSAGES, embedder)


def test_what_fails_on_the_way_leaves_the_old_index_or_no_folder(tmp_path, index, embedder):
    def broken():
        yield from PASSAGES[:5]
        raise SourceError("f.txt: cannot be read")

    for folder in (index.directory, tmp_path / "new"):
        with pytest.raises(SourceError, match=r"^f.txt: cannot be read$"):
            build_index(folder, broken(), embedder)
    with pytest.raises(DataError, match="there are no passages"):
        build_index(tmp_path / "new", [], embedder)
    assert not (tmp_path / "new").exists()
    assert VectorIndex.open(index.directory).passages(range(30)) == PASSAGES
    assert len(list(index.directory.iterdir())) == 3


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("index.json", lambda path: path.unlink(), "no index here"),
        ("index.json", cut, "cannot be read"),
        ("index.json", lambda path: path.write_text("[]"), "not an index of vectors"),
        ("index.json", lambda path: path.write_text('{"format": "gptrs-vectors"}'), "version None"),
        ("vectors.npy", lambda path: path.unlink(), "vectors.npy: cannot be read"),
        ("vectors.npy", cut, "vectors.npy: cannot be read"),
        ("vectors.npy", lambda path: np.save(path, np.ones((30, 7), "f4")), r"float32 \[30, 7\]"),
        ("vectors.npy", lambda path: np.save(path, np.ones((30, 8))), "found float64"),
        ("passages.jsonl", cut, "30 vectors, 29 whole lines"),
        ("passages.jsonl", lambda path: path.write_text("{}\n" * 30), "passages.jsonl: damaged"),
        ("passages.jsonl", lambda path: path.unlink(), "no such file"),
    ],
)  # fmt: skip
def test_damage_is_found_and_named(index, embedder, name, damage, message):
    damage(index.directory / name)
    with pytest.raises(StoreError, match=message):
        VectorIndex.open(index.directory).search(embedder, "a")


def test_impossible_searches_are_refused(index, embedder):
    with pytest.raises(ConfigError, match="top is 0"):
        index.search(embedder, "a", top=0)
    with pytest.raises(DataError, match="text 0 is empty"):
        index.search(embedder, "")
    with pytest.raises(DataError, match=r"queries are \[Q, 8\], found \[1, 3\]"):
        index.nearest(np.ones((1, 3), np.float32), 1)
    with pytest.raises(ConfigError, match="needs an embedder that normalizes"):
        build_index(index.directory, PASSAGES, Embedder(small_model(), normalize=False))


def test_a_graph_finds_nearly_what_exact_search_finds(tmp_path):
    pytest.importorskip("usearch")
    random = np.random.default_rng(0)
    vectors, queries = units(random, (3000, 16)), units(random, (50, 16))
    graph = Graph(16)
    for start in range(0, 3000, 1000):
        graph.add(start, vectors[start : start + 1000])
    graph.save(tmp_path / "graph")
    opened = Graph.open(tmp_path / "graph", 16)
    exact, found = exact_nearest(vectors, queries, 10), opened.nearest(queries, 10)
    hits = [
        len(set(a) & set(b)) for a, b in zip(exact.rows.tolist(), found.rows.tolist(), strict=True)
    ]
    assert np.mean(hits) > 9
    assert recall(opened, vectors) > 0.9
    shared = found.rows == exact.rows
    np.testing.assert_allclose(found.scores[shared], exact.scores[shared], atol=1e-5)
    with pytest.raises(ValueError, match="16 numbers, not 8"):
        Graph.open(tmp_path / "graph", 8)


def test_recall_counts_what_a_graph_misses():
    pytest.importorskip("usearch")
    vectors = units(np.random.default_rng(1), (400, 8))

    class Forgetful(Graph):
        def nearest(self, queries, top):
            rows, scores = super().nearest(queries, top)
            return type(exact_nearest(vectors, queries, 1))(rows[:, : top // 2 + 1], scores)

    graph = Forgetful(8)
    graph.add(0, vectors)
    assert recall(graph, vectors) == pytest.approx(0.5, abs=0.05)


def test_an_index_with_a_graph_is_searched_through_it_unless_exactly(tmp_path, embedder):
    pytest.importorskip("usearch")
    index = build_index(tmp_path / "index", PASSAGES, embedder, approximate=True)
    assert index.facts.recall == pytest.approx(1, abs=0.05)
    for exact in (False, True):
        best, *_ = index.search(embedder, PASSAGES[7].text, exact=exact)
        assert best.passage == PASSAGES[7]
    (index.directory / "graph.usearch").write_bytes(b"damage")
    assert index.search(embedder, "a", exact=True)
    with pytest.raises(StoreError, match=r"graph.usearch: cannot be read"):
        index.search(embedder, "a")
    plain = build_index(tmp_path / "index", PASSAGES, embedder)
    assert plain.facts.recall is None
    assert not (plain.directory / "graph.usearch").exists()


def test_without_usearch_large_indexes_are_searched_exactly(tmp_path, embedder, monkeypatch):
    def missing():
        raise MissingExtraError('pip install "gptrs[search]"')

    monkeypatch.setattr("gptrs.embeddings.nearest._usearch", missing)
    monkeypatch.setattr("gptrs.embeddings.vector_index_building.MOST_EXACT", 10)
    index = build_index(tmp_path / "index", PASSAGES, embedder)
    assert index.facts.recall is None
    assert index.search(embedder, PASSAGES[7].text)[0].passage == PASSAGES[7]
    with pytest.raises(MissingExtraError, match=r"gptrs\[search\]"):
        build_index(tmp_path / "other", PASSAGES, embedder, approximate=True)
    assert not (tmp_path / "other").exists()


def test_above_a_number_of_passages_there_is_a_graph(tmp_path, embedder, monkeypatch):
    pytest.importorskip("usearch")
    monkeypatch.setattr("gptrs.embeddings.vector_index_building.MOST_EXACT", len(PASSAGES) - 1)
    assert build_index(tmp_path / "index", PASSAGES, embedder).facts.recall is not None
    shutil.rmtree(tmp_path / "index")
    monkeypatch.setattr("gptrs.embeddings.vector_index_building.MOST_EXACT", len(PASSAGES))
    assert build_index(tmp_path / "index", PASSAGES, embedder).facts.recall is None
