"""The tokenizer among threads, signals, processes and imports."""

import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gptrs.errors import ConfigError
from gptrs.text.named_tokenizers import get_tokenizer
from gptrs.text.tokenizer_training import train_tokenizer

TOKENIZER = get_tokenizer("gpt2")


def words(seed, num_words):
    """A text of random words, so that most are new to the tokenizer."""
    draw = random.Random(seed)
    return " ".join(
        "".join(draw.choices("etaoinshrdluéж中🙂'0!\n", k=draw.randint(1, 12)))
        for _ in range(num_words)
    )


def test_many_threads_that_share_a_tokenizer_get_the_right_ids():
    texts = [words(seed, 2000) for seed in range(8)]
    encoding = TOKENIZER.as_tiktoken()
    expected = [encoding.encode_ordinary(text) for text in texts]

    def encode(number):
        text = texts[number % 8]
        ids = [
            TOKENIZER.encode_ordinary,
            lambda text: TOKENIZER.encode_to_numpy(text, threads=2).tolist(),
            lambda text: TOKENIZER.encode_batch_to_numpy([text], threads=3)[0].tolist(),
        ][number % 3](text)
        return ids == expected[number % 8] and TOKENIZER.count(text) == len(ids)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(encode, range(240)))


@pytest.mark.parametrize("threads", [2, 5, None])
def test_one_text_on_several_threads_has_the_ids_of_one_thread(threads):
    text = words(1, 400_000)
    assert len(text) > 2_500_000
    ids = TOKENIZER.encode_to_numpy(text)
    assert (ids == TOKENIZER.as_tiktoken().encode_to_numpy(text)).all()
    assert (ids == TOKENIZER.encode_to_numpy(text, threads=threads)).all()
    marked = text[:2_000_000] + "<|endoftext|>" * 3 + text[2_000_000:]
    several = TOKENIZER.encode_to_numpy(marked, allowed_special="all", threads=threads)
    assert (several == TOKENIZER.encode_to_numpy(marked, allowed_special="all")).all()
    assert (several == 50256).sum() == 3


@pytest.mark.parametrize("threads", [0, -1])
def test_less_than_one_thread_is_refused(threads):
    for encode in (TOKENIZER.encode_to_numpy, TOKENIZER.encode_batch_to_numpy):
        with pytest.raises(ConfigError, match=f"threads is at least 1, found {threads}"):
            encode(
                ["text"] if encode == TOKENIZER.encode_batch_to_numpy else "text", threads=threads
            )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_process_encodes_with_the_tokenizer_that_it_got():
    program = """if True:
        import os, threading
        from gptrs.text.named_tokenizers import get_tokenizer
        tokenizer = get_tokenizer("gpt2")
        text = "".join(f"word{i} and {i * 7} " for i in range(200_000))
        expected = tokenizer.encode_to_numpy(text, threads=2)
        stop = threading.Event()
        def keep_encoding():
            while not stop.is_set():
                tokenizer.encode_to_numpy(text[:100_000])
        thread = threading.Thread(target=keep_encoding)
        thread.start()
        failed = 0
        for _ in range(10):
            if (child := os.fork()) == 0:
                ids = tokenizer.encode_to_numpy(text, threads=2)
                os._exit(int((ids != expected).any()))
            failed += os.waitpid(child, 0)[1] != 0
        stop.set()
        thread.join()
        print(failed)
    """
    assert run_python(program) == "0"


@pytest.fixture
def no_thread_switches():
    """Until the test ends, a thread keeps the GIL until it lets go of it by itself."""
    interval = sys.getswitchinterval()
    yield lambda: sys.setswitchinterval(1000)
    sys.setswitchinterval(interval)


def test_other_threads_run_while_a_text_is_encoded(no_thread_switches):
    text = "estin" * 200_000
    go, ran = threading.Event(), []
    other = threading.Thread(target=lambda: (go.wait(), ran.append(True)))
    other.start()
    no_thread_switches()
    go.set()
    assert not ran
    TOKENIZER.encode_to_numpy(text)
    assert ran
    other.join()


ONE_PIECE = "estin" * 3_000_000


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """A text of 43 MB with more words than any cache holds, and the file of it."""
    text = " ".join(f"{number:x}" for number in range(6_000_000))
    file = tmp_path_factory.mktemp("numbers") / "text.txt"
    file.write_text(text)
    return text, file


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer on this platform")
@pytest.mark.parametrize(
    "work",
    [
        lambda text, file: TOKENIZER.encode_to_numpy(ONE_PIECE),
        lambda text, file: TOKENIZER.encode_to_numpy(2 * text, threads=2),
        lambda text, file: TOKENIZER.count(text),
        lambda text, file: TOKENIZER.encode_file(file),
        lambda text, file: train_tokenizer(file, 8000),
        lambda text, file: train_tokenizer(8 * [file], kind="char"),
    ],
    ids=["one piece", "threads", "count", "file", "train", "characters"],
)
def test_signals_are_heard_again_and_again_during_one_call(numbers, work):
    class Stop(Exception):
        pass

    heard = []

    def handler(*_):
        heard.append(True)
        if len(heard) == 2:
            raise Stop

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        # Signals that wait until the call is over count once. Rust asks every 40 ms: the work takes
        # some 0.2 s at least.
        with pytest.raises(Stop):
            work(*numbers)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_importing_and_encoding_loads_neither_numpy_nor_torch_nor_tiktoken():
    program = """if True:
        import sys
        from gptrs.text.named_tokenizers import get_tokenizer
        tokenizer = get_tokenizer("gpt2")
        assert tokenizer.decode(tokenizer.encode("Hello")) == "Hello"
        print(sorted({"numpy", "torch", "tiktoken"} & set(sys.modules)))
    """
    assert run_python(program) == "[]"


def run_python(program):
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
