"""WordVectors against NumPy and gensim, its files against gensim's and by hand."""

import contextlib
import struct

import numpy as np
import pytest

from gptrs.embeddings.word_vectors import WordVectors
from gptrs.errors import ConfigError, DataError, SourceError, WordError

SEEDS = range(20)


def random_vectors(seed: int) -> WordVectors:
    random = np.random.default_rng(seed)
    num_words, vector_size = random.integers(1, 300), random.integers(1, 40)
    words = [f"{'Ωλ中😀é'[row % 5]}{row}" for row in range(num_words)]
    vectors = random.standard_normal((num_words, vector_size), dtype=np.float32)
    return WordVectors(words, vectors * 10.0 ** random.integers(-20, 20, (num_words, 1)))


def same(found: WordVectors, expected: WordVectors) -> bool:
    return found.words == expected.words and np.array_equal(found.vectors, expected.vectors)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["v.bin", "v.txt", "v.vec"])
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, seed, name):
    vectors = random_vectors(seed)
    path = vectors.save(tmp_path / name)
    assert same(WordVectors.load(path), vectors)
    assert same(WordVectors.load(path, "binary" if name == "v.bin" else "text"), vectors)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_gensim_reads_what_we_write_and_we_read_what_it_writes(tmp_path, seed, binary):
    models = pytest.importorskip("gensim.models")
    vectors, path = random_vectors(seed), tmp_path / "vectors"
    vectors.save(path, "binary" if binary else "text")
    theirs = models.KeyedVectors.load_word2vec_format(str(path), binary=binary)
    assert same(WordVectors(theirs.index_to_key, theirs.vectors), vectors)
    theirs.save_word2vec_format(str(path), binary=binary)
    assert same(WordVectors.load(path), vectors)


def test_a_glove_file_is_read_with_blanks_in_its_words(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("the 1 -2.5e-1\n. . . 3 4\n\xa0 5 6\n1 7 8\n", encoding="utf-8")
    found = WordVectors.load(path)
    expected = [[1, -0.25], [3, 4], [5, 6], [7, 8]]
    assert same(found, WordVectors(["the", ". . .", "\xa0", "1"], expected))
    assert same(WordVectors.load(path, "glove"), found)


@pytest.mark.parametrize(
    "content",
    [
        b"2 2\na 1 2\nb 3 4\n",
        b"2 2\na 1 2 \nb 3 4 \n",  # fastText's and word2vec.c's blanks
        b"2 2\r\na 1 2\r\nb 3 4\r\n",
        b"2 2\na 1 2\nb 3 4",
        b"2 2\na 1 2\nb 3 4\n\n",
        b"2 2\na " + struct.pack("<2f", 1, 2) + b"\nb " + struct.pack("<2f", 3, 4) + b"\n",
        b"2 2\na " + struct.pack("<2f", 1, 2) + b"b " + struct.pack("<2f", 3, 4),
        b"a 1 2\nb 3 4",
        b"a 1 2\nb 3 4\n\n",
    ],
)
def test_files_of_every_program_are_told_apart_and_read(tmp_path, content):
    (tmp_path / "v").write_bytes(content)
    assert same(WordVectors.load(tmp_path / "v"), WordVectors(["a", "b"], [[1, 2], [3, 4]]))


def test_a_file_of_many_blocks_of_lines_is_read_in_order(tmp_path):
    vectors = WordVectors([f"w{i}" for i in range(10_000)], np.arange(20_000).reshape(-1, 2))
    path = vectors.save(tmp_path / "v.txt")
    assert same(WordVectors.load(path), vectors)
    glove = path.read_bytes().split(b"\n", 1)[1]
    path.write_bytes(glove)
    assert same(WordVectors.load(path), vectors)
    path.write_bytes(glove.replace(b"w9000 ", b"w9000 x"))
    with pytest.raises(SourceError, match=r"line 9001 should be a word and 2 numbers, found 'x180"):
        WordVectors.load(path)


BINARY = b"2 2\na " + struct.pack("<2f", 1, 2) + b"\nb " + struct.pack("<2f", 3, 4) + b"\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello\n", "its first line is not a word and numbers"),
        (b"0 5\n", "has 0 vectors of 5 numbers by its first line"),
        (b"9999999999 9999999999\na 1", "is cut off: 9999999999 vectors of 9999999999 numbers"),
        (b"3 2\na 1 2\nb 3 4\n", "is cut off"),
        (b"4 1\naaaaaa 1\nbbbbbbb 2\n", "is cut off: it has 2 vectors of 4"),
        (b"1 2\na 1 2\nb 3 4\n", "goes on behind the 1 vectors"),
        (b"2 2\na 1 2\nb 3.0\n", "line 3 should be a word and 2 numbers, found 1 numbers"),
        (b"2 2\na 1 2\nb 3 4 5\n", "line 3 should be a word and 2 numbers, found 3 numbers"),
        (b"2 2\na 1 2\nb 3 four\n", "line 3 should be a word and 2 numbers, found 'four'"),
        (b"a 1 2\nb 3\n", "line 2 should be a word and 2 numbers, found 1 numbers"),
        (b"a 1 2\nb 3 nan\n", "the vector of 'b' has a number that is not finite"),
        (b"a 1 2\n\nb 3 4\n", "line 2 should be a word and 2 numbers, found 0 numbers"),
        (b"a 1 2\na 3 4\n", "has the word 'a' twice, as vectors 0 and 1"),
        (b"a 1 2\n\xff 3 4\n", r"the word b'\\xff', 1 words from the start, is not UTF-8"),
        (b"a 1 2\n 3 4\n", "vector 1 has no word"),
        (BINARY[:-6], "is cut off"),
        (BINARY + b"c", "goes on behind the 2 vectors"),
        (BINARY.replace(b"b ", b"a "), "has the word 'a' twice"),
        (BINARY.replace(b"b ", b"\xe9 "), "is not UTF-8"),
    ],
)
def test_a_damaged_file_is_refused_by_name_with_what_was_found(tmp_path, content, message):
    path = tmp_path / "vectors"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"vectors: .*{message}"):
        WordVectors.load(path)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_file_cut_off_anywhere_or_with_a_wrong_byte_is_read_or_refused(tmp_path, seed):
    random = np.random.default_rng(seed)
    path = WordVectors(["the", "of", "中"], random.random((3, 3))).save(
        tmp_path / ("v.bin" if seed % 2 else "v.txt")
    )
    content = bytearray(path.read_bytes())
    for end in range(seed % 4, len(content), 4):
        path.write_bytes(content[:end])
        try:
            assert len(WordVectors.load(path)) in (1, 2, 3)  # A number that lacks digits is one.
            assert end >= len(content) - 20
        except SourceError:
            pass
    for _ in range(15):
        damaged = content.copy()
        damaged[random.integers(len(damaged))] = random.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(SourceError):
            WordVectors.load(path)


def test_bytes_that_are_not_utf_8_are_replaced_if_asked(tmp_path):
    (tmp_path / "v").write_bytes(b"a\xff 1\nb 2\n")
    words = WordVectors.load(tmp_path / "v", errors="replace").words
    assert words == ["a\N{REPLACEMENT CHARACTER}", "b"]


def test_what_cannot_be_read_or_written_is_said(tmp_path):
    with pytest.raises(SourceError, match="nothing: no such file"):
        WordVectors.load(tmp_path / "nothing")
    with pytest.raises(SourceError, match="is a folder"):
        WordVectors.load(tmp_path)
    vectors = WordVectors(["a"], [[1]])
    with pytest.raises(ConfigError, match="format"):
        vectors.save(tmp_path / "v", "glove")
    with pytest.raises(ConfigError, match="format"):
        WordVectors.load(tmp_path / "v", "word2vec")
    with pytest.raises(ConfigError, match="errors"):
        WordVectors.load(tmp_path / "v", errors="ignore")
    for word in ["", "a b", "a\n"]:
        with pytest.raises(DataError, match="no file of vectors can hold it"):
            WordVectors([word], [[1]]).save(tmp_path / "v")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("vectors", [[1, 2], [[1], [2], [3]], [[[1]], [[2]]]])
def test_as_many_vectors_as_words_are_needed(vectors):
    with pytest.raises(DataError, match=r"2 words need vectors of shape \(2, D\), found"):
        WordVectors(["a", "b"], vectors)


def test_a_word_that_is_there_twice_is_refused():
    with pytest.raises(DataError, match="'a' is there more than once"):
        WordVectors(["b", "a", "a"], np.zeros((3, 1)))


def test_words_are_looked_up_and_their_vectors_cannot_be_changed():
    vectors = WordVectors(["a", "b"], np.arange(4, dtype=np.float32).reshape(2, 2))
    assert vectors["b"].tolist() == [2, 3]
    assert ("a" in vectors, "c" in vectors, 1 in vectors) == (True, False, False)
    assert (len(vectors), vectors.vector_size, vectors.row("b")) == (2, 2, 1)
    assert repr(vectors) == "<WordVectors: 2 words x 2>"
    with pytest.raises(ValueError, match="read-only"):
        vectors["a"][0] = 1
    with pytest.raises(WordError, match=r"^the word 'c' has no vector; 2 others have one$"):
        vectors["c"]
    with pytest.raises(KeyError):
        vectors.similarity("a", "c")


def test_an_array_that_is_given_stays_writable_and_is_not_copied():
    given = np.zeros((1, 2), dtype=np.float32)
    vectors = WordVectors(["a"], given)
    given[0] = 1
    assert vectors["a"].tolist() == [1, 1]


def test_coverage_counts_words_as_often_as_they_occur():
    vectors = WordVectors(["a", "b"], np.ones((2, 1)))
    assert vectors.coverage(["a", "a", "b", "c"]) == 0.75
    assert vectors.coverage(iter([])) == 1.0


@pytest.mark.parametrize("seed", SEEDS)
def test_the_most_similar_words_are_those_of_the_highest_cosine(seed):
    vectors = random_vectors(seed)
    units = vectors.vectors.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    random = np.random.default_rng(seed)
    rows = random.choice(len(vectors), size=min(3, len(vectors)), replace=False)
    signs = np.array([1, 1, -1])[: len(rows)]
    query = signs @ units[rows]
    cosines = units @ query / np.linalg.norm(query)
    cosines[rows] = -2
    expected = np.argsort(-cosines, kind="stable")[: min(5, len(vectors) - len(rows))]
    asked = [vectors.words[row] for row in rows]
    found = vectors.most_similar(asked[:2], asked[2:], topn=5)
    assert [word for word, _ in found] == [vectors.words[row] for row in expected]
    np.testing.assert_allclose([cosine for _, cosine in found], cosines[expected], atol=1e-5)
    for row, sign in zip(rows, signs, strict=True):
        found = vectors.similarity(asked[0], units[row] * sign)
        assert found == pytest.approx(units[rows[0]] @ units[row] * sign, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_gensim_finds_the_same_words(tmp_path, seed):
    models = pytest.importorskip("gensim.models")
    vectors = WordVectors(
        [f"w{i}" for i in range(50)], np.random.default_rng(seed).standard_normal((50, 8))
    )
    theirs = models.KeyedVectors(8)
    theirs.add_vectors(vectors.words, vectors.vectors)
    for positive, negative in [(["w1"], []), (["w2", "w3"], ["w4"]), (["w5"], ["w6", "w7"])]:
        ours = vectors.most_similar(positive, negative, topn=7)
        expected = theirs.most_similar(positive, negative, topn=7)
        assert [word for word, _ in ours] == [word for word, _ in expected]
        np.testing.assert_allclose([c for _, c in ours], [c for _, c in expected], atol=1e-5)
    assert vectors.similarity("w8", "w9") == pytest.approx(theirs.similarity("w8", "w9"), abs=1e-6)


def test_an_analogy_leaves_out_its_own_words():
    vectors = WordVectors(
        ["man", "king", "woman", "queen", "zero"], [[1, 0], [1, 5], [2, 0.1], [2, 5], [0, 0]]
    )
    assert [word for word, _ in vectors.analogy("man", "king", "woman")] == ["queen"]
    assert dict(vectors.analogy("man", "king", "woman", topn=9)).keys() == {"queen", "zero"}
    assert vectors.similarity("zero", "man") == 0


def test_equal_words_come_in_the_order_of_their_rows():
    vectors = WordVectors(["a", "b", "c", "d"], np.ones((4, 3)))
    assert [word for word, _ in vectors.most_similar("b", topn=2)] == ["a", "c"]
    assert [word for word, _ in vectors.most_similar(np.ones(3), topn=2)] == ["a", "b"]


def test_questions_that_have_no_answer_are_refused():
    vectors = WordVectors(["a", "b"], np.ones((2, 3)))
    with pytest.raises(ConfigError, match="needs a word"):
        vectors.most_similar([])
    with pytest.raises(ConfigError, match="topn is at least 1, found 0"):
        vectors.most_similar("a", topn=0)
    with pytest.raises(ConfigError, match=r"a vector has shape \(3,\), found \(2,\)"):
        vectors.most_similar(np.ones(2))
    with pytest.raises(WordError, match="'x'"):
        vectors.most_similar(["a", "x"])
