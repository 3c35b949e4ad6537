"""The native engine: the same logits, tokens and texts as PyTorch's, wherever it may run."""

import gc
import os
import random
import signal
import threading
import time
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from gptrs import (
    Generator,
    GPTModel,
    _core,
    add_lora,
    generate,
    generate_text_simple,
)
from gptrs.engines import native_engine
from gptrs.engines.choice import make_engine
from gptrs.engines.native_engine import NativeEngine
from gptrs.engines.native_weights import weights_of, why_not_native
from gptrs.errors import ConfigError, GenerationError, TokenIdError
from gptrs.model.layers import MultiHeadAttention
from gptrs.model.linear import Linear

SEEDS = range(24)
KINDS = ("learned", "sinusoidal", "rope", "alibi", "none")
KERNELS = _core.NativeModel.available_kernels()
DTYPES = {"float32": None, "bfloat16": None, "int8": "int8"}


class Letters:
    """A tokenizer, since a Generator has one; the prompts here are ids."""

    def __init__(self, n_vocab):
        self.n_vocab = n_vocab

    def encode(self, text):
        return [ord(letter) - 65 for letter in text]

    def decode(self, ids):
        return "".join(chr(65 + i) for i in ids)


def make_model(seed, dtype=torch.float32, **changes):
    """A random model of odd sizes, in which everything matters."""
    rng = random.Random(seed)
    pos = changes.get("pos", KINDS[seed % len(KINDS)])
    heads = rng.choice([1, 2, 3, 5, 7])
    head_dim = rng.choice([2, 4, 6, 10, 16, 18, 34] if pos == "rope" else [2, 3, 5, 16, 17, 33])
    config = {
        "vocab_size": rng.choice([11, 53, 97, 258, 1001]),
        "context_length": rng.choice([7, 16, 24, 40]),
        "emb_dim": heads * head_dim * (2 if pos == "sinusoidal" else 1),
        "n_heads": heads,
        "n_layers": rng.randint(1, 3),
        "qkv_bias": rng.random() < 0.5,
        "tie_embeddings": rng.random() < 0.5,
        "init": "gpt2",
        "pos": pos,
    }
    torch.manual_seed(seed)
    model = GPTModel(config | changes).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            wide = parameter.ndim == 2 and "emb" not in name and "head" not in name
            parameter.copy_(noise / parameter.shape[1] ** 0.5 if wide else noise * 0.4)
            if name.endswith("scale"):
                parameter.add_(1)
    return model.to(dtype)


def make_prompts(seed, model, count):
    rng = random.Random(seed)
    longest = model.cfg.context_length - 1
    vocab_size = model.cfg.vocab_size
    return [
        [rng.randrange(vocab_size) for _ in range(rng.randint(1, longest))] for _ in range(count)
    ]


def make_native(model, slots=9, **options):
    settings = {"context_size": model.cfg.context_length, "prefill_tokens": 2048}
    return NativeEngine(model, slots=slots, **settings | options)


def make_generator(model, **options):
    return Generator(model, Letters(model.cfg.vocab_size), **options)


def read(engine, prompts, *, part=None):
    """The logits at all positions of prompts, each in a slot of its own, `part` tokens a call."""
    rows = [[] for _ in prompts]
    part = part or max(map(len, prompts))
    for start in range(0, max(map(len, prompts)), part):
        slots = [slot for slot, prompt in enumerate(prompts) if len(prompt) > start]
        parts = [prompts[slot][start : start + part] for slot in slots]
        tokens = torch.tensor([token for part in parts for token in part])
        engine.tokens[: len(tokens)] = tokens
        engine.starts[: len(slots)] = start
        counts = list(map(len, parts))
        logits = engine.extend(slots, counts, counts).split(counts)
        for slot, logits_TV in zip(slots, logits, strict=True):
            rows[slot].append(logits_TV)
    return [torch.cat(parts) for parts in rows]


@torch.no_grad()
def expected(model, prompts):
    return [model(torch.tensor([prompt]))[0].float() for prompt in prompts]


def furthest(found, wanted):
    return max((a - b).abs().max().item() for a, b in zip(found, wanted, strict=True))


# --- Equal to PyTorch ---


@pytest.mark.parametrize("seed", SEEDS)
def test_logits_are_pytorchs(seed):
    model = make_model(seed)
    prompts = make_prompts(seed, model, count=1 + seed % 9)
    wanted = expected(model, prompts)
    for kernels in KERNELS:
        engine = make_native(model, kernels=kernels, threads=1 + seed % 3)
        assert furthest(read(engine, prompts), wanted) < 1e-4
        assert furthest(read(engine, prompts, part=1 + seed % 5), wanted) < 1e-4


class KeepingInBfloat16(MultiHeadAttention):
    """Attention over keys and values that were rounded to bfloat16, as the cache keeps them."""

    def _fused(self, q, k, v, *settings):
        return super()._fused(q, k.bfloat16().float(), v.bfloat16().float(), *settings)


class FakeQuantized(nn.Linear):
    """A linear layer with a byte a weight and, in groups of 64, a byte an input."""

    def forward(self, x):
        largest = self.weight.abs().amax(1, keepdim=True)
        weight = (self.weight * (127 / largest)).round() * (largest / 127)
        width = x.shape[-1]
        groups = nn.functional.pad(x, (0, -width % 64)).unflatten(-1, (-1, 64))
        largest = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30)
        rounded = (groups * (127 / largest)).round() * (largest / 127)
        return nn.functional.linear(rounded.flatten(-2)[..., :width], weight, self.bias)


class Rounding(nn.Linear):
    """Inputs are rounded to bfloat16, sums are float32."""

    def forward(self, x):
        return super().forward(x.bfloat16().float())


class RoundingWholeTiles(nn.Linear):
    """The same of layers that consist of whole tiles."""

    def forward(self, x):
        is_tiled = self.in_features % 32 == 0 and self.out_features >= 16
        return super().forward(x.bfloat16().float() if is_tiled else x)


def as_oracle(model, classes):
    for module in model.modules():
        module.__class__ = classes.get(type(module), type(module))
    return model


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("seed", SEEDS)
def test_bfloat16_is_read_as_it_is_and_summed_wider(seed, kernels):
    widths = {} if seed % 2 else {"emb_dim": 64, "n_heads": 4}
    model = make_model(seed, torch.bfloat16, **widths)
    prompts = make_prompts(seed, model, count=3)
    wide = make_model(seed, torch.bfloat16, **widths).float()
    linear = {"amx": RoundingWholeTiles, "avx512bf16": Rounding}.get(kernels, Linear)
    layers = {MultiHeadAttention: KeepingInBfloat16, Linear: linear}
    wanted = expected(as_oracle(wide, layers), prompts)
    found = read(make_native(model, kernels=kernels), prompts)
    # A number between two of bfloat16 goes one way or the other by its last bit.
    difference = (torch.cat(found) - torch.cat(wanted)).abs()
    assert difference.median() < {"amx": 2e-3, "avx512bf16": 4e-3}.get(kernels, 1e-4)
    assert difference.max() < (0.02 if linear is Linear else 0.1)


@pytest.mark.parametrize("seed", SEEDS)
def test_int8_is_a_model_of_quantized_layers(seed):
    model, quantized = make_model(seed), make_model(seed)
    classes = {MultiHeadAttention: KeepingInBfloat16, Linear: FakeQuantized}
    prompts = make_prompts(seed, model, count=3)
    wanted = torch.cat(expected(as_oracle(quantized, classes), prompts))
    found = torch.cat(read(make_native(model, int8=True), prompts))
    plain = torch.cat(expected(model, prompts))
    # A number between two bytes goes one way or the other by its last bit, and others follow it.
    assert (found - wanted).abs().amax(1).min() < 1e-3
    assert (found - wanted).std() < 0.5 * (found - plain).std()


@pytest.mark.parametrize("seed", SEEDS)
def test_greedy_tokens_are_pytorchs_past_the_window_too(seed):
    model = make_model(seed)
    window = model.cfg.context_length
    prompts = make_prompts(seed, model, count=1 + seed % 4)
    overflow = ("slide", "rebase", "stop")[seed % 3]
    native, torchs = (
        make_generator(model, engine=engine)(
            prompts, window, temperature=0.0, eos_id=None, overflow=overflow
        )
        for engine in ("native", "torch")
    )
    assert [each.token_ids for each in native] == [each.token_ids for each in torchs]
    assert native[0].engine == f"native float32 {KERNELS[0]}"
    assert torchs[0].engine == "torch"


@pytest.mark.parametrize("seed", range(8))
def test_the_books_functions_take_it_and_give_the_books_tokens(seed, monkeypatch):
    model = make_model(seed)
    ids = torch.randint(model.cfg.vocab_size, (3, 4))
    window = model.cfg.context_length
    with torch.no_grad():
        wanted = ids
        for _ in range(window):
            logits = model(wanted[:, -window:])[:, -1]
            wanted = torch.cat((wanted, logits.argmax(-1, keepdim=True)), dim=1)
    made = []
    monkeypatch.setattr(
        "gptrs.generation.book.make_engine",
        lambda *args, **options: made.append(make_engine(*args, **options)) or made[-1],
    )
    assert torch.equal(generate_text_simple(model, ids, window, window), wanted)
    assert torch.equal(generate(model, ids, window, window), wanted)
    generate(model, ids, 1, window, temperature=1.0)
    names = [engine.name for engine in made]
    assert names == [f"native float32 {KERNELS[0]}"] * 2 + ["torch: PyTorch draws"]


# --- The same bits, however it is asked ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("pos", KINDS)
def test_logits_do_not_depend_on_neighbours_threads_or_cuts(dtype, kernels, pos):
    stored = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    model = make_model(sum(map(ord, pos)), stored, pos=pos, context_length=40)
    options = {"kernels": kernels, "int8": dtype == "int8"}
    prompts = make_prompts(3, model, count=9)
    alone = [read(make_native(model, 1, threads=1, **options), [each])[0] for each in prompts]
    for threads, part, count in ((1, 1, 9), (2, 7, 5), (3, None, 9), (2, 3, 2)):
        engine = make_native(model, threads=threads, **options)
        found = read(engine, prompts[:count], part=part)
        assert all(map(torch.equal, found, alone))


def test_a_copied_prefix_goes_on_as_its_own_tokens_would():
    for seed in range(8):
        model = make_model(seed)
        prompts = make_prompts(seed, model, count=2)
        engine = make_native(model)
        whole = read(engine, prompts)[0]
        for kept in range(1, len(prompts[0])):
            engine.copy([(0, 5, kept)])
            rest = prompts[0][kept:]
            engine.tokens[: len(rest)] = torch.tensor(rest)
            engine.starts[0] = kept
            assert torch.equal(engine.extend([5], [len(rest)], [len(rest)]), whole[kept:])


# --- When it runs, and when PyTorch does ---


def with_lora(model):
    add_lora(model, rank=2, alpha=2)


def with_head_of_its_own(model):
    model.out_head = nn.Sequential(model.out_head)


def with_fewer_outputs(model):
    model.out_head = nn.Linear(model.cfg.emb_dim, 3)


def with_more_tokens(model, num_added=9):
    """As one who adds tokens does; the rows of the old ones stay."""
    cfg, old = model.cfg, (model.tok_emb, model.out_head)
    model.tok_emb = nn.Embedding(cfg.vocab_size + num_added, cfg.emb_dim)
    model.out_head = nn.Linear(cfg.emb_dim, cfg.vocab_size + num_added)
    with torch.no_grad():
        for layer, known in zip((model.tok_emb, model.out_head), old, strict=True):
            layer.weight[: cfg.vocab_size] = known.weight
    return model


def with_a_layer_of_its_own(model):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model.trf_blocks[0].ff.layers[0].__class__ = Doubled


def with_a_forward_of_its_own(model):
    norm = model.final_norm
    norm.forward = lambda x: 2 * type(norm).forward(norm, x)


def with_a_hook_on_a_layer(model):
    model.trf_blocks[0].att.W_key.register_forward_hook(lambda *args: None)


def with_a_parametrization(model):
    parametrize.register_parametrization(model.trf_blocks[0].att.W_key, "weight", nn.Identity())


def with_a_strided_weight(model):
    weight = model.trf_blocks[0].att.W_key.weight
    weight.data = weight.data.t().contiguous().t()


def in_float16(model):
    model.half()


def in_two_dtypes(model):
    model.final_norm.bfloat16()


def with_a_norm_limit(model):
    model.tok_emb.max_norm = 1.0


CASES = {
    with_lora: "LoRALinear stands in the place of Linear at trf_blocks.0.att.W_query",
    with_head_of_its_own: "the output layer was replaced",
    with_fewer_outputs: "tok_emb reads [0-9]+ token ids and out_head gives 3 logits",
    with_a_layer_of_its_own: "Doubled stands in the place of Linear at trf_blocks.0.ff.layers.0",
    with_a_forward_of_its_own: "final_norm has a forward of its own",
    with_a_hook_on_a_layer: "a hook waits on trf_blocks.0.att.W_key",
    with_a_parametrization: "ParametrizedLinear stands in the place of Linear",
    with_a_strided_weight: "trf_blocks.0.att.W_key.weight is not contiguous",
    in_float16: "tok_emb.weight is float16",
    in_two_dtypes: "its weights are bfloat16 on cpu and float32 on cpu",
    with_a_norm_limit: "an embedding has a max_norm",
}


@pytest.mark.parametrize("change", CASES, ids=lambda change: change.__name__)
def test_where_the_model_is_not_the_stock_one_pytorch_runs_and_says_why(change):
    model = make_model(0)
    change(model)
    with pytest.raises(ConfigError, match=CASES[change]):
        make_engine(model, slots=1, context_size=7, engine="native")
    if change is with_fewer_outputs:
        with pytest.raises(ConfigError, match=CASES[change]):
            make_engine(model, slots=1, context_size=7)
        return
    if change is in_two_dtypes:  # PyTorch cannot run this either.
        assert CASES[change] in make_engine(model, slots=1, context_size=7).name
        return
    [completion] = make_generator(model)([1, 2], 3, temperature=0.0)
    assert completion.engine.startswith("torch")
    assert CASES[change] in completion.engine


@pytest.mark.parametrize("dtype", [None, "int8"])
def test_tokens_that_were_added_are_read_and_written(dtype):
    model = with_more_tokens(make_model(0))
    num_ids = model.cfg.vocab_size + 9
    with torch.no_grad():
        model.out_head.bias[-9:] += 9  # What was added is what is likely.
    tokenizer, prompt = Letters(num_ids), [num_ids - 1, 3]
    generators = [Generator(model, tokenizer, engine="native", dtype=dtype)]
    generators += [Generator(model, tokenizer, engine="torch")] if dtype is None else []
    for generator in generators:
        [completion] = generator(prompt, 4, temperature=0.0)
        ids = torch.tensor([prompt + completion.token_ids[:-1]])
        logits_TV = model(ids[:, -model.cfg.context_length :])[0, -4:].detach()
        chosen = logits_TV.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        assert min(completion.token_ids) >= model.cfg.vocab_size
        assert torch.all(chosen >= logits_TV.max(1).values - (0.5 if dtype else 1e-4))


def test_tokens_added_to_one_layer_while_it_runs_end_the_run():
    model = make_model(0)
    engine = make_native(model, slots=1)
    model.tok_emb = with_more_tokens(make_model(0)).tok_emb
    with pytest.raises(GenerationError, match="cannot go on with it: tok_emb reads"):
        read(engine, [[1, 2]])


@pytest.mark.parametrize("pos", ["t5", "relative_key", "relative_key_query", "transformer_xl"])
def test_other_positions_are_pytorchs(pos):
    [completion] = make_generator(make_model(1, pos=pos))([1, 2], 3)
    assert completion.engine == f"torch: positions are {pos}"


def test_a_memory_of_segments_is_pytorchs():
    model = make_model(1, pos="transformer_xl", memory_length=4)
    [completion] = make_generator(model)([1, 2], 3)
    assert completion.engine == "torch: the model has a memory of earlier segments"


def test_a_subclass_or_a_hook_on_the_model_has_no_cache_and_no_rust():
    class Own(GPTModel):
        pass

    own, hooked = Own(make_model(0).cfg).eval(), make_model(0)
    hooked.register_forward_hook(lambda *args: None)
    for model, reason in ((own, "Own is not GPTModel"), (hooked, "hooks? waits? on the model")):
        [completion] = make_generator(model)([1, 2], 3)
        assert completion.engine.startswith("torch, no cache")
        with pytest.raises(ConfigError, match=reason):
            make_generator(model, engine="native")([1, 2], 3)


def test_a_hook_on_all_modules_is_seen():
    handle = nn.modules.module.register_module_forward_hook(lambda *args: None)
    try:
        [completion] = make_generator(make_model(0))([1, 2], 3)
    finally:
        handle.remove()
    assert completion.engine == "torch: a hook waits on all modules"


def test_autocast_is_pytorchs():
    with torch.autocast("cpu", torch.bfloat16):
        [completion] = make_generator(make_model(0))([1, 2], 3)
    assert completion.engine == "torch: autocast is on"


def test_a_generator_puts_a_model_in_training_into_eval_mode_for_it():
    model = make_model(0, drop_rate=0.5).train()
    [completion] = make_generator(model, engine="native")([1, 2], 3)
    assert completion.engine.startswith("native")
    assert model.training
    with pytest.raises(ConfigError, match="dropout is on"):
        make_engine(model, slots=1, context_size=7, engine="native")


def test_dtype_may_be_the_weights_own():
    for stored, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        for dtype in (None, stored, name):
            engine = make_engine(make_model(0, stored), slots=1, context_size=7, dtype=dtype)
            assert engine.name == f"native {name} {KERNELS[0]}"
    engine = make_engine(make_model(0), slots=1, context_size=7, dtype="bfloat16")
    assert engine.name == "torch bfloat16: its weights are float32, not bfloat16"
    for dtype in ("int8", torch.int8):
        for engine in ("auto", "native"):
            made = make_engine(make_model(0), slots=1, context_size=7, dtype=dtype, engine=engine)
            assert made.name == f"native int8 {KERNELS[0]}"


def test_what_goes_with_no_native_engine_is_refused():
    model, options = make_model(0), {"slots": 1, "context_size": 7}
    for settings, message in (
        ({"engine": "rust"}, '"auto", "native" or "torch", found \'rust\''),
        ({"engine": "torch", "dtype": "int8"}, 'cannot run this .engine="torch"'),
        ({"engine": "native", "compile": True}, "compile is for PyTorch's step"),
        ({"engine": "native", "dtype": "bfloat16"}, "its weights are float32, not bfloat16"),
        ({"engine": "native", "choose": lambda logits: logits}, "PyTorch draws"),
        ({"dtype": "int4"}, "unknown dtype 'int4'"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_engine(model, **options, **settings)
    for other in (lambda ids: ids, nn.Linear(2, 2)):
        with pytest.raises(ConfigError, match=r'engine="native".*GPTModel'):
            make_engine(other, **options, engine="native")
    with pytest.raises(ConfigError, match="threads is at least 1, found 0"):
        make_native(model, threads=0)
    with pytest.raises(ConfigError, match=r"kernels.*found .*abacus"):
        make_native(model, kernels="abacus")
    with pytest.raises(ConfigError, match="weight is on meta"):
        make_engine(make_model(0).to("meta"), **options, engine="native")
    with pytest.raises(GenerationError, match="key-value cache"):
        make_native(make_model(2, pos="rope"), context_size=2**44)


def test_a_weight_of_another_shape_is_named():
    model = make_model(0)
    with torch.no_grad():
        model.trf_blocks[0].att.W_key.weight = nn.Parameter(torch.zeros(3, 5))
    with pytest.raises(ConfigError, match=r"att.W_key.*\[3, 5\]"):
        make_native(model)


def test_calls_by_hand_are_checked():
    model = make_model(0)
    native = make_native(model, slots=2).native
    length = model.cfg.context_length
    for arguments in (
        ([1], [2], [0], [1], [1]),  # No such slot.
        ([1], [0], [length + 1], [1], [1]),
        ([1], [0], [0], [2], [1]),  # Fewer tokens than counts say.
        ([1], [0], [0], [1], []),
    ):
        with pytest.raises(GenerationError):
            native.extend(*arguments)
    with pytest.raises(TokenIdError):
        native.extend([model.cfg.vocab_size], [0], [0], [1], [1])
    with pytest.raises(ConfigError, match="holds"):
        native.extend([1, 1], [0], [length - 1], [2], [2])
    for copied in ((0, 2, 1), (2, 0, 1), (0, 1, length + 1)):
        with pytest.raises(GenerationError):
            native.copy(*copied)
    assert native.extend([1], [0], [0], [1], [1]).shape == (1, model.cfg.vocab_size)


def test_an_engine_serves_one_loop_at_a_time():
    engine = make_native(make_model(0))
    expected = read(engine, [[1]])
    loop = _core.Generation(engine)
    assert not engine.native.is_free
    with pytest.raises(GenerationError, match="a loop has taken"):
        _core.Generation(engine)
    with pytest.raises(GenerationError, match="a loop has taken"):
        read(engine, [[1]])
    del loop
    assert engine.native.is_free
    assert torch.equal(read(engine, [[1]])[0], expected[0])


# --- A model that changes ---


def train_a_step(model):
    model.train()
    loss = model(torch.tensor([[1, 2, 3]])).logsumexp(-1).mean()
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    model.zero_grad()
    model.eval()


def write_in_place(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)


def write_through_data(model):
    for parameter in model.parameters():
        parameter.data.mul_(0.5)


def replace_a_parameter(model):
    linear = model.trf_blocks[0].ff.layers[0]
    linear.weight = nn.Parameter(linear.weight.detach() * 0.5)


def replace_all_data(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.5


def replace_all_data_by_copies(model):
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def load_other_weights(model):
    model.load_state_dict({k: v * 0.5 for k, v in model.state_dict().items()}, assign=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "change",
    [train_a_step, write_in_place, write_through_data, replace_a_parameter, replace_all_data,
     load_other_weights],
)  # fmt: skip
def test_changes_between_calls_are_seen(change, dtype):
    stored = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    model = make_model(0, stored)
    gen = make_generator(model, engine="native", dtype=DTYPES[dtype])
    options = {"temperature": 0.0, "logprobs": 3, "eos_id": None, "seed": 1}
    before = gen([1, 2], 4, **options)
    change(model)
    after = gen([1, 2], 4, **options)
    fresh = GPTModel(model.cfg).to(stored)
    fresh.load_state_dict(model.state_dict())
    assert after != before
    anew = make_generator(fresh, engine="native", dtype=DTYPES[dtype])
    assert after == anew([1, 2], 4, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("change", [write_in_place, replace_a_parameter, replace_all_data])
def test_changes_in_the_middle_of_a_stream_are_seen(change, dtype):
    """By the next token: the tokens before it stay in the cache as they were."""
    stored = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    model = make_model(5, stored, context_length=16)
    engine = make_native(model, int8=dtype == "int8")
    read(engine, [[1, 2, 3]])
    change(model)
    engine.tokens[0], engine.starts[0] = 4, 3
    by_hand = engine.extend([0], [1], [1])[0].log_softmax(-1)

    model = make_model(5, stored, context_length=16)
    gen = make_generator(model, engine="native", dtype=DTYPES[dtype])
    stream = gen.stream([1, 2, 3], 2, regex=None, logprobs=0, logit_bias={4: 1e9}, eos_id=None)
    next(stream)
    change(model)
    list(stream)
    chosen = stream.completions[0].logprobs[1].chosen
    assert abs(chosen - by_hand[4].item()) < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_a_hook_on_a_layer, "a hook waits on trf_blocks.0.att.W_key"),
        (with_lora, "LoRALinear stands"),
        (lambda model: model.to("meta"), "is on meta"),
        (lambda model: model.half(), "is float16"),
        (lambda model: model.bfloat16(), "are bfloat16 now, and were float32"),
        (lambda model: model.__setattr__("final_norm", nn.Identity()), "Identity stands"),
    ],
)
def test_a_model_that_no_longer_fits_ends_a_stream_and_says_why(change, message):
    model = make_model(0)
    stream = make_generator(model, engine="native").stream([1, 2, 3], 50, eos_id=None)
    next(stream)
    change(model)
    with pytest.raises(GenerationError, match=f"the model has changed.*{message}"):
        list(stream)


def test_memory_that_is_read_cannot_be_taken_away():
    model = make_model(0)
    gen = make_generator(model, engine="native")
    stream = gen.stream([1, 2, 3], 4, temperature=0.0, eos_id=None)
    expected = gen([1, 2, 3], 4, temperature=0.0, eos_id=None)[0].token_ids
    next(stream)
    for parameter in model.parameters():
        with pytest.raises(RuntimeError, match="not resizable"):
            parameter.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="not resizable"):
            parameter.data.resize_(10_000_000)
    list(stream)
    assert stream.completions[0].token_ids == expected


@pytest.mark.parametrize("move", [nn.Module.share_memory, replace_all_data_by_copies])
def test_weights_that_move_in_the_middle_of_a_stream_are_followed(move):
    model = make_model(0)
    gen = make_generator(model, engine="native")
    expected = gen([1, 2, 3], 9, temperature=0.0, eos_id=None)[0].token_ids
    stream = gen.stream([1, 2, 3], 9, temperature=0.0, eos_id=None)
    next(stream)
    move(model)
    gc.collect()
    list(stream)
    assert stream.completions[0].token_ids == expected


def test_inference_mode_changes_nothing():
    expected = make_generator(make_model(0), engine="native")([1, 2], 5, temperature=0.0)
    with torch.inference_mode():
        model = make_model(0)
        inside = make_generator(model, engine="native")([1, 2], 5, temperature=0.0)
    outside = make_generator(model, engine="native", dtype="int8")([1, 2], 5, temperature=0.0)
    assert [each.token_ids for each in inside] == [each.token_ids for each in expected]
    assert outside[0].engine.startswith("native int8")


def test_int8_is_packed_once_for_a_model_that_stays_as_it_is():
    model = make_model(0)
    prompts = make_prompts(1, model, count=3)
    first = read(make_native(model, int8=True), prompts)
    packed = native_engine._PACKED[model].packed
    again = read(make_native(model, slots=3, int8=True, threads=2), prompts)
    assert all(map(torch.equal, first, again))
    assert native_engine._PACKED[model].packed is packed
    write_through_data(model)
    make_native(model, int8=True)
    assert native_engine._PACKED[model].packed is not packed
    with pytest.raises(ConfigError, match="other matrices"):
        _core.NativeModel(
            weights_of(make_model(2)), slots=1, context_length=7, threads=1,
            int8=True, packed=packed,
        )  # fmt: skip


def test_neither_an_engine_nor_a_generator_keeps_a_model():
    model = make_model(0)
    gone = weakref.ref(model)
    gen = make_generator(model, engine="native", dtype="int8")
    gen([1, 2], 3)
    stream = gen.stream([1, 2], 3)
    next(stream)
    engine = make_native(model)
    del gen, model, stream, engine
    gc.collect()
    assert gone() is None


# --- Everything that runs on it ---


@pytest.mark.parametrize("seed", SEEDS)
def test_seeds_draw_the_same_tokens_as_with_pytorch(seed):
    model = make_model(seed)
    prompts = make_prompts(seed, model, count=4)
    options = {"seed": seed, "temperature": 0.9, "top_p": 0.9, "num_samples": 2, "logprobs": 2}
    native, torchs = (
        make_generator(model, engine=engine)(prompts, 12, eos_id=None, **options)
        for engine in ("native", "torch")
    )
    assert [each.token_ids for each in native] == [each.token_ids for each in torchs]
    for ours, theirs in zip(native, torchs, strict=True):
        for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert abs(a.chosen - b.chosen) < 2e-4


@pytest.mark.parametrize("seed", range(20))
def test_beams_are_those_of_pytorch(seed):
    model = make_model(seed, context_length=24)
    prompts = make_prompts(seed, model, count=3)
    native, torchs = (
        make_generator(model, engine=engine)(prompts, 6, num_beams=3, num_samples=2, eos_id=1)
        for engine in ("native", "torch")
    )
    assert [each.token_ids for each in native] == [each.token_ids for each in torchs]
    for ours, theirs in zip(native, torchs, strict=True):
        assert abs(ours.score - theirs.score) < 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_streams_sessions_and_submitted_prompts_give_what_a_call_gives(dtype):
    model = make_model(3, torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    gen = make_generator(model, engine="native", dtype=DTYPES[dtype])
    prompts = make_prompts(4, model, count=6)
    options = {"seed": 5, "eos_id": None, "logprobs": 2}
    called = gen(prompts, 9, **options)
    stream = gen.stream(prompts, 9, **options)
    list(stream)
    assert stream.completions == called
    handles = [gen.submit(each, 9, sequences=[i], **options) for i, each in enumerate(prompts)]
    submitted = [handle.result(30) for handle in handles]
    # To the last bit, whatever ran beside it.
    assert [each.logprobs for each in submitted] == [each.logprobs for each in called]
    session = gen.session(**options)
    assert session.send(prompts[0], 9).logprobs == called[0].logprobs
    one_by_one = [gen(each, 9, sequences=[i], **options)[0] for i, each in enumerate(prompts)]
    assert [each.logprobs for each in one_by_one] == [each.logprobs for each in called]
    gen.close()


def test_threads_may_use_one_generator_together():
    model = make_model(3)
    gen = make_generator(model, engine="native")
    prompts = make_prompts(4, model, count=6)
    called = gen(prompts, 9, seed=1)
    results = [None] * 6

    def work(index):
        results[index] = gen(prompts, 9, seed=1)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [called] * 6


def test_ctrl_c_is_heard_while_a_long_prompt_is_read_and_while_tokens_are_drawn():
    model = make_model(2, pos="rope", emb_dim=128, n_heads=2, n_layers=3, context_length=20_000)
    gen = make_generator(model, engine="native")
    for prompt, num_new in (([1] * 19_000, 1), ([1], 19_000)):
        timer = threading.Timer(0.15, signal.raise_signal, [signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            gen(prompt, num_new, eos_id=None)
        timer.join()
        assert len(gen([1, 2], 3, eos_id=None)[0].token_ids) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_goes_on_with_engines_of_its_parent_and_makes_its_own():
    model = make_model(3)
    prompts = make_prompts(4, model, count=3)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gen = make_generator(model, engine="native")
        called = gen(prompts, 9, seed=1)
        stream = gen.stream(prompts, 9, seed=1)
        next(stream)
        child = os.fork()
        if child == 0:
            list(stream)
            is_same = stream.completions == called and gen(prompts, 9, seed=1) == called
            os._exit(0 if is_same else 1)
        deadline = time.monotonic() + 60
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        if ended[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert ended == (child, 0)
        list(stream)
        assert stream.completions == called
    finally:
        torch.set_num_threads(threads)


def test_what_keeps_a_model_from_it_is_nothing_for_a_fresh_one():
    for seed in range(len(KINDS)):
        assert why_not_native(make_model(seed)) is None
