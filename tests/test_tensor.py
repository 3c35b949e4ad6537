"""How the Rust half reads and writes tensors in place: through the sampler, and a loop's engine."""

import ctypes

import numpy as np
import pytest
import torch

from gptrs import Sampler, SamplingConfig, _core
from gptrs.errors import GenerationError

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def test_rows_are_read_wherever_they_lie():
    logits_BTV = torch.randn(4, 3, 50, requires_grad=True)
    expected = logits_BTV[:, -1].argmax(-1).tolist()
    greedy = Sampler(SamplingConfig(temperature=0))
    for rows in (
        logits_BTV[:, -1],
        torch.nn.Parameter(logits_BTV.detach()[:, -1]),
        logits_BTV.detach()[:, -1].numpy(),
        logits_BTV.detach()[:, -1].double().T.contiguous().T,
        np.asfortranarray(logits_BTV.detach()[:, -1].numpy()),
        logits_BTV.detach()[:, -1].numpy().astype(">f4"),
        logits_BTV.detach()[:, -1].numpy()[:, ::-1][:, ::-1],
        misaligned(logits_BTV.detach()[:, -1].numpy()),
    ):
        assert greedy(rows).tolist() == expected
    assert greedy(logits_BTV[:, -1].flip(0)).tolist() == expected[::-1]
    assert greedy(logits_BTV.detach()[:, -1].numpy()[::-1]).tolist() == expected[::-1]
    assert greedy(logits_BTV[:1, -1].expand(3, -1)).tolist() == expected[:1] * 3


def misaligned(rows):
    raw = np.zeros(rows.nbytes + 1, dtype=np.uint8)[1:]
    raw[:] = np.frombuffer(rows.tobytes(), dtype=np.uint8)
    return raw.view(np.float32).reshape(rows.shape)


class CountingTensor(torch.Tensor):
    """A tensor of a class that offers no exchange API, and counts how often it is asked."""

    __dlpack_c_exchange_api__ = None
    num_reads = 0

    def data_ptr(self):
        CountingTensor.num_reads += 1
        return super().data_ptr()


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_tensor_class_without_the_exchange_api_is_read_by_its_pointer(dtype):
    rows = torch.randn(5, 2, 40).to(dtype)[:, 1]
    config = SamplingConfig(seed=2)
    before = CountingTensor.num_reads
    drawn = Sampler(config)(rows.as_subclass(CountingTensor))
    assert drawn.tolist() == Sampler(config)(rows).tolist()
    assert CountingTensor.num_reads == before + 1


class Header(ctypes.Structure):
    """`DLPackExchangeAPIHeader`."""

    _fields_ = (("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("older", ctypes.c_void_p))


def exchange_capsule(header):
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = (
        ctypes.py_object,
        (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p),
    )
    return new(ctypes.addressof(header), b"dlpack_exchange_api", None)


def torchs_exchange_api():
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return get(torch.Tensor.__dlpack_c_exchange_api__, b"dlpack_exchange_api")


def test_an_exchange_api_of_a_later_version_leads_to_the_one_we_know():
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this torch has no exchange API")
    header = Header(2, 0, torchs_exchange_api())

    class LaterTensor(CountingTensor):
        __dlpack_c_exchange_api__ = exchange_capsule(header)

    rows, before = torch.randn(3, 40), CountingTensor.num_reads
    greedy = Sampler(SamplingConfig(temperature=0))
    assert greedy(rows.as_subclass(LaterTensor)).tolist() == rows.argmax(-1).tolist()
    assert CountingTensor.num_reads == before


def test_an_exchange_api_of_unknown_versions_alone_is_not_used():
    header = Header(2, 0, None)

    class FutureTensor(CountingTensor):
        __dlpack_c_exchange_api__ = exchange_capsule(header)

    rows, before = torch.randn(3, 40), CountingTensor.num_reads
    greedy = Sampler(SamplingConfig(temperature=0))
    assert greedy(rows.as_subclass(FutureTensor)).tolist() == rows.argmax(-1).tolist()
    assert CountingTensor.num_reads == before + 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_tensor_on_a_gpu_is_refused_with_its_device():
    for rows in (torch.zeros(1, 3), torch.zeros(1, 3).as_subclass(CountingTensor)):
        with pytest.raises(GenerationError, match="on the CPU is needed, found one on cuda:0"):
            Sampler()(rows.cuda())


class Engine:
    """Answers with the same logits, whatever comes."""

    vocab_size, context_length, slots = 5, 8, 1

    def __init__(self, answer=None, tokens=None):
        self.answer = torch.eye(5)[3:4] if answer is None else answer
        self.tokens = torch.zeros(9, dtype=torch.int64) if tokens is None else tokens
        self.starts = np.zeros(1, dtype=np.int64)

    def step(self, num_slots):
        return self.answer

    def extend(self, slots, counts, wanted):
        return self.answer

    def copy(self, copies):
        pass


def run(engine):
    greedy = SamplingConfig(temperature=0.0).to_core()
    generation = _core.Generation(engine, prefill_tokens=8)
    generation.submit([1, 2], max_new_tokens=3, window=8, sampling=greedy)
    [(tokens, *_)] = generation.run()
    return tokens


@pytest.mark.parametrize("as_class", [torch.Tensor, CountingTensor])
def test_tensors_are_written_in_place(as_class):
    engine = Engine(tokens=torch.full((9,), -1).as_subclass(as_class))
    assert run(engine) == [3, 3, 3]
    assert engine.tokens.tolist() == [3, 2, *[-1] * 7]
    assert engine.starts.tolist() == [3]


def read_only():
    array = np.zeros(9, dtype=np.int64)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (read_only(), "neither read-only nor requires grad"),
        (torch.zeros(9, requires_grad=True), "neither read-only nor requires grad"),
        (torch.zeros(18, dtype=torch.int64)[::2], "not contiguous .* found one of shape .*9"),
        (np.zeros((4, 9), dtype=np.int64).T, "not contiguous"),
        (torch.zeros(9, dtype=torch.int32), "or int64, found int32"),
        (np.zeros(9, dtype=np.int32), "or int64, found int32"),
        (np.zeros(9, dtype=">i8"), "or int64, found >i8"),
        (torch.zeros(1, 1, 1, 1, 9, dtype=torch.int64), "at most 4 dimensions, found 5"),
        (torch.zeros(9, dtype=torch.int64, device="meta"), "meta"),
        (torch.zeros(9, dtype=torch.int64).to_sparse(), "cannot be read in place"),
        ([0] * 9, "a NumPy array or a torch tensor is needed, found list"),
        (None, "a NumPy array or a torch tensor is needed, found NoneType"),
    ],
)
def test_what_cannot_be_written_is_refused_with_what_was_found(tokens, message):
    engine = Engine()
    engine.tokens = tokens
    with pytest.raises(GenerationError, match=message):
        run(engine)


@pytest.mark.parametrize("dtype", FLOATS)
def test_answers_are_read_in_every_dtype(dtype):
    assert run(Engine(answer=torch.eye(5)[4:].to(dtype))) == [4, 4, 4]
