"""`train_word2vec` against planted structure, against gensim, `re` and `collections.Counter`."""

import gzip
import json
import os
import re
import signal
import threading
import time
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner

from gptrs import build_store, get_tokenizer
from gptrs.commands.word2vec import word2vec
from gptrs.embeddings.word2vec import token_names, train_word2vec
from gptrs.embeddings.word_vectors import WordVectors
from gptrs.errors import ConfigError, DataError, SourceError

SEEDS = range(20)
NUM_GROUPS, GROUP_SIZE = 8, 5
SMALL = {"vector_size": 20, "sample": 0.0, "min_count": 1, "threads": 1}
ALGORITHMS = ["skip-gram", "cbow"]


def groups(seed: int, num_sentences: int = 1500) -> list[list[str]]:
    """Sentences, each of words of one group; word w3_1 belongs to group 3."""
    random = np.random.default_rng(seed)
    sentences = []
    for _ in range(num_sentences):
        group = random.integers(NUM_GROUPS)
        words = random.integers(GROUP_SIZE, size=8)
        sentences.append([f"w{group}_{word}" for word in words])
    return sentences


def attributes(seed: int, num_sentences: int = 6000) -> list[list[str]]:
    """Word r2c3 occurs among the words of row 2 and of column 3: so r2c3 - r2c1 + r0c1 is r0c3."""
    random = np.random.default_rng(seed)
    sentences = []
    for row, column in random.integers(5, size=(num_sentences, 2)):
        words = [f"r{row}c{column}"]
        words += [f"row{row}_{i}" for i in random.integers(4, size=3)]
        words += [f"column{column}_{i}" for i in random.integers(4, size=3)]
        sentences.append([words[i] for i in random.permutation(len(words))])
    return sentences


def saved(path, sentences):
    path.write_text("".join(" ".join(words) + "\n" for words in sentences), encoding="utf-8")
    return path


def neighbours(vectors, word: str) -> set[str]:
    return {other for other, _ in vectors.most_similar(word, topn=GROUP_SIZE - 1)}


def group_of(word: str) -> set[str]:
    return {f"{word[:3]}{i}" for i in range(GROUP_SIZE)} - {word}


def analogies(vectors) -> float:
    """The share of questions about rows and columns that are answered right, over 5 words."""
    right, asked = 0, 0
    for row in range(5):
        for column in range(1, 5):
            other = (row + column) % 5
            if row != other:
                question = (f"r{row}c0", f"r{row}c{column}", f"r{other}c0")
                found = vectors.analogy(*question, topn=1)
                right += found[0][0] == f"r{other}c{column}"
                asked += 1
    return right / asked


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("seed", SEEDS)
def test_words_that_occur_together_are_each_other_s_neighbours(tmp_path, seed, algorithm):
    path = saved(tmp_path / "text.txt", groups(seed))
    vectors = train_word2vec(
        path, algorithm=algorithm, seed=seed, alpha=0.1, cbow_mean=seed % 2 == 0, **SMALL
    )
    assert len(vectors) == NUM_GROUPS * GROUP_SIZE
    assert all(neighbours(vectors, word) == group_of(word) for word in vectors.words)


def test_gensim_finds_the_same_neighbours(tmp_path):
    models = pytest.importorskip("gensim.models")
    sentences = groups(0)
    path = saved(tmp_path / "text.txt", sentences)
    for number, algorithm in enumerate(ALGORITHMS):
        ours = train_word2vec(path, algorithm=algorithm, alpha=0.1, **SMALL)
        theirs = models.Word2Vec(
            sentences, vector_size=20, sample=0, min_count=1, workers=1, sg=1 - number, alpha=0.1
        )
        theirs = WordVectors(theirs.wv.index_to_key, theirs.wv.vectors)
        assert all(neighbours(ours, word) == neighbours(theirs, word) for word in ours.words)


@pytest.mark.parametrize("seed", range(5))
def test_planted_analogies_are_found_as_well_as_by_gensim(tmp_path, seed):
    sentences = attributes(seed)
    path = saved(tmp_path / "text.txt", sentences)
    ours = train_word2vec(path, window=7, alpha=0.05, seed=seed, epochs=6, **SMALL)
    assert analogies(ours) > 0.9
    models = pytest.importorskip("gensim.models")
    settings = {"sample": 0, "min_count": 1, "workers": 1, "sg": 1, "alpha": 0.05, "epochs": 6}
    theirs = models.Word2Vec(sentences, vector_size=20, window=7, seed=seed, **settings)
    theirs = WordVectors(theirs.wv.index_to_key, theirs.wv.vectors)
    assert abs(analogies(ours) - analogies(theirs)) < 0.1


def test_two_columns_are_enough_for_a_few_groups(tmp_path):
    path = saved(tmp_path / "text.txt", [s for s in groups(3) if s[0] < "w3"])
    vectors = train_word2vec(path, alpha=0.1, epochs=20, **SMALL | {"vector_size": 2})
    assert vectors.vectors.shape == (3 * GROUP_SIZE, 2)
    assert all(neighbours(vectors, word) == group_of(word) for word in vectors.words)


def test_one_thread_learns_the_same_again_and_another_seed_something_else(tmp_path):
    path = saved(tmp_path / "text.txt", groups(1))
    for algorithm in ALGORITHMS:
        first, second, third = (
            train_word2vec(path, algorithm=algorithm, seed=seed, **SMALL) for seed in (5, 5, 6)
        )
        assert first.words == second.words == third.words
        assert np.array_equal(first.vectors, second.vectors)
        assert not np.allclose(first.vectors, third.vectors, atol=1e-3)


def test_threads_learn_what_one_thread_does(tmp_path):
    path = saved(tmp_path / "text.txt", groups(2, num_sentences=6000))
    vectors = train_word2vec(path, alpha=0.05, **SMALL | {"threads": 4})
    assert all(neighbours(vectors, word) == group_of(word) for word in vectors.words)


def test_a_window_does_not_cross_the_end_of_a_line(tmp_path):
    alone = saved(tmp_path / "alone.txt", [[word] for words in groups(0, 300) for word in words])
    first, second = (train_word2vec(alone, epochs=epochs, **SMALL) for epochs in (1, 3))
    assert np.array_equal(first.vectors, second.vectors), "nobody predicts anybody"
    assert np.abs(first.vectors).max() <= 0.5 / 20


@pytest.mark.parametrize("seed", SEEDS)
def test_the_vocabulary_is_what_is_counted_the_most_frequent_first(tmp_path, seed):
    random = np.random.default_rng(seed)
    letters = list("ab AB\t\u3000é中1_-,.")
    lines = ["".join(random.choice(letters, size=30)) for _ in range(random.integers(20, 2000))]
    text = "\n".join(lines)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    lower, pattern = bool(seed & 1), r"\w+" if seed & 2 else None
    min_count, max_vocab = int(random.integers(1, 4)), int(random.integers(5, 100))
    threads = 1 + seed % 3
    vectors = train_word2vec(
        tmp_path / "text.txt", lower=lower, pattern=pattern, min_count=min_count,
        max_vocab=max_vocab, threads=threads, epochs=1, vector_size=3,
    )  # fmt: skip
    text = text.lower() if lower else text
    counts = Counter(re.findall(pattern, text) if pattern else text.split())
    expected = sorted(counts.items(), key=lambda item: (-item[1], item[0].encode()))
    expected = [item for item in expected if item[1] >= min_count][:max_vocab]
    assert vectors.words == [word for word, _ in expected]
    assert vectors.counts.tolist() == [count for _, count in expected]
    assert vectors.vectors.dtype == np.float32


def test_json_lines_and_compressed_files_are_learned_from_as_plain_text(tmp_path):
    sentences = groups(4, num_sentences=400)
    expected = train_word2vec(saved(tmp_path / "a.txt", sentences), **SMALL)
    content = (tmp_path / "a.txt").read_bytes()
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(content))
    rows = [{"body": " ".join(words)} for words in sentences]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "d.jsonl").write_text(json.dumps({"body": content.decode()}))
    for name in ["b.txt.gz", "c.jsonl", "d.jsonl"]:
        found = train_word2vec(tmp_path / name, text_key="body", **SMALL)
        assert found.words == expected.words
        assert np.array_equal(found.counts, expected.counts)
        assert all(neighbours(found, word) == group_of(word) for word in found.words)
    both = train_word2vec([tmp_path / "a.txt", tmp_path / "b.txt.gz"], **SMALL)
    assert np.array_equal(both.counts, 2 * expected.counts)


def test_vectors_of_a_store_s_tokens_have_their_names_and_counts(tmp_path):
    sentences = groups(5)
    path = saved(tmp_path / "text.txt", sentences)
    store = build_store(path, tmp_path / "store", split_on="\n")
    ids = np.bincount(np.asarray(store[:]), minlength=50257)
    end_of_text = store.tokenizer.eot_token
    for inputs in [store, tmp_path / "store", [str(tmp_path / "store")]]:
        found = train_word2vec(inputs, **SMALL | {"min_count": 2})
        kept = [i for i in np.argsort(-ids, kind="stable") if ids[i] >= 2 and i != end_of_text]
        assert found.counts.tolist() == ids[kept].tolist()
        assert found.words == token_names(store.tokenizer, [int(i) for i in kept])
    assert " w" not in found
    assert "Ġw" in found


def test_vectors_of_tokens_need_no_spaces(tmp_path):
    sentences = groups(6)
    chars = {
        word: chr(0x4E00 + i) for i, word in enumerate(sorted({w for s in sentences for w in s}))
    }
    path = tmp_path / "text.txt"
    path.write_text("\n".join("".join(map(chars.get, words)) for words in sentences), "utf-8")
    from gptrs import train_tokenizer

    tokenizer = train_tokenizer(path, None, kind="char")
    vectors = train_word2vec(path, tokenizer=tokenizer, alpha=0.1, **SMALL)
    word_of = {char: word for word, char in chars.items()}
    renamed = WordVectors([word_of[char] for char in vectors.words], vectors.vectors)
    assert all(neighbours(renamed, word) == group_of(word) for word in renamed.words)


def test_the_names_of_gpt2_s_tokens_are_all_different_and_can_be_written(tmp_path):
    tokenizer = get_tokenizer("gpt2")
    names = token_names(tokenizer, list(range(tokenizer.n_vocab)))
    assert len(set(names)) == len(names)
    ids = tokenizer.encode(" the\n\t\r中")
    assert "".join(token_names(tokenizer, ids)).startswith("ĠtheĊĉč")
    assert token_names(tokenizer, tokenizer.encode("é中"))[0] == "é"
    assert "".join(token_names(tokenizer, tokenizer.encode("🦀"))) == "<0xF0><0x9F><0xA6><0x80>"
    path = WordVectors(names, np.ones((len(names), 1))).save(tmp_path / "v.txt")
    assert WordVectors.load(path).words == names


def test_progress_is_told_and_ends_with_all_words(tmp_path):
    path = saved(tmp_path / "text.txt", groups(0))
    calls = []
    vectors = train_word2vec(path, epochs=30, on_progress=lambda *call: calls.append(call), **SMALL)
    assert {phase for phase, _, _ in calls} <= {"counting", "training"}
    total = 30 * int(vectors.counts.sum())
    assert calls[-1] == ("training", total, total)
    training = [done for phase, done, _ in calls if phase == "training"]
    assert training == sorted(training)


def test_what_a_callback_raises_ends_the_work_and_arrives_unchanged(tmp_path):
    path = saved(tmp_path / "text.txt", groups(0))

    def fail(phase, done, total):
        raise ZeroDivisionError("mine")

    for threads in (1, 3):
        with pytest.raises(ZeroDivisionError, match="mine"):
            train_word2vec(path, epochs=10**6, on_progress=fail, **SMALL | {"threads": threads})


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("threads", [1, 3])
def test_ctrl_c_is_heard_while_it_learns(tmp_path, threads):
    path = saved(tmp_path / "text.txt", groups(0))
    started = threading.Event()

    def press():
        started.wait()
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        train_word2vec(
            path, epochs=10**6, on_progress=lambda *_: started.set(), **SMALL | {"threads": threads}
        )
    thread.join()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "glove"}, 'algorithm is "skip-gram" or "cbow"'),
        ({"errors": "ignore"}, 'errors is "strict" or "replace"'),
        ({"vector_size": 0}, "vector_size is 1 to 65536, found 0"),
        ({"window": 0}, "window is 1 to"),
        ({"negative": -1}, "negative is at least 1, found -1"),
        ({"epochs": 0}, "epochs is at least 1"),
        ({"max_vocab": 0}, "max_vocab is at least 1"),
        ({"threads": 0}, "threads is at least 1"),
        ({"alpha": 0.0}, "alpha is above 0"),
        ({"alpha": float("nan")}, "alpha is above 0"),
        ({"alpha": 0.01, "min_alpha": 0.02}, "min_alpha 0 to alpha"),
        ({"sample": -1.0}, "sample is 0 to 1"),
        ({"seed": -1}, "seed is 0 to"),
        ({"pattern": "("}, "is no pattern for words"),
        ({"pattern": "(?<=a)b"}, "is no pattern for words"),
        ({"pattern": "a b"}, "a word may have no whitespace in it"),
        ({"tokenizer": "gpt2", "lower": True}, "pattern and lower are for words"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, settings, message):
    path = saved(tmp_path / "text.txt", [["a", "b"]] * 10)
    with pytest.raises(ConfigError, match=message):
        train_word2vec(path, **settings)


def test_text_that_cannot_be_learned_from_is_refused(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a b b\nc b b\n")
    message = r"no word occurs 5 times, .*: 3 distinct words were found, the most frequent 4 times"
    with pytest.raises(DataError, match=message):
        train_word2vec(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="0 distinct words"):
        train_word2vec(path)
    path.write_bytes(b"a b\nc \xff d\n")
    with pytest.raises(SourceError, match=r"text\.txt: not UTF-8: byte 0xff at offset 6"):
        train_word2vec(path, min_count=1)
    assert len(train_word2vec(path, min_count=1, errors="replace")) == 5
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(SourceError, match=r"a\.jsonl:2: has no field \"text\""):
        train_word2vec(tmp_path / "a.jsonl", min_count=1)
    for once in ["-", [["a b", "c d"]]]:
        with pytest.raises(SourceError, match="can be read once only"):
            train_word2vec(once)
    with pytest.raises(SourceError, match="no such file"):
        train_word2vec(tmp_path / "nothing")


def test_the_command_writes_a_file_that_is_loaded_and_says_what_it_holds(tmp_path):
    path = saved(tmp_path / "text.txt", groups(0))
    out = tmp_path / "vectors.bin"
    options = ["--vector-size", "20", "--sample", "0", "--alpha", "0.1", "--threads", "1"]
    done = CliRunner().invoke(word2vec, [str(path), "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    assert f"40 words x 20 are in {out}" in done.output
    expected = train_word2vec(path, **SMALL | {"min_count": 5}, alpha=0.1)
    assert np.array_equal(WordVectors.load(out).vectors, expected.vectors)
    tokens = CliRunner().invoke(word2vec, [str(path), "--out", str(out), "--tokens", *options])
    assert tokens.exit_code == 0, tokens.output
    assert "Ġw" in WordVectors.load(out)


def test_the_command_refuses_a_place_that_is_none_before_it_learns(tmp_path):
    path = saved(tmp_path / "text.txt", groups(0, 10))
    for out in [tmp_path, tmp_path / "no" / "vectors.bin"]:
        done = CliRunner().invoke(word2vec, [str(path), "--out", str(out)])
        assert isinstance(done.exception, ConfigError)
        assert "cannot be written" in str(done.exception)


@pytest.mark.parametrize("place", ["text.txt", "folder", "tokenizer", "store"])
def test_the_command_never_writes_over_what_it_reads(tmp_path, place):
    text = saved(tmp_path / "text.txt", groups(0, 10))
    tokenizer = get_tokenizer("gpt2").save(tmp_path)
    build_store(text, tmp_path / "store")
    inputs, out = {
        "text.txt": ([str(text)], text),
        "folder": ([str(tmp_path)], text),
        "tokenizer": ([str(text), "--tokens", "--tokenizer", str(tokenizer)], tokenizer),
        "store": ([str(tmp_path / "store")], tmp_path / "store" / "tokens-00000.npy"),
    }[place]
    before = out.read_bytes()
    done = CliRunner().invoke(word2vec, [*inputs, "--out", str(out), "--min-count", "1"])
    assert isinstance(done.exception, ConfigError)
    assert "it is what is read" in str(done.exception)
    assert out.read_bytes() == before


def test_the_command_writes_over_the_vectors_that_it_wrote(tmp_path):
    text = saved(tmp_path / "text.txt", groups(0, 10))
    build_store(text, tmp_path / "store")
    out = tmp_path / "store" / "vectors.bin"
    out.write_bytes(b"of before")
    options = ["--out", str(out), "--vector-size", "2"]
    done = CliRunner().invoke(word2vec, [str(tmp_path / "store"), *options])
    assert done.exit_code == 0, done.output
    assert WordVectors.load(out).vector_size == 2
