"""What pictures show of models is what transformers computes for them."""

import random

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    T5Config,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.models.t5.modeling_t5 import T5Attention

from gptrs.config import GPTConfig
from gptrs.errors import ConfigError, DataError, GenerationError
from gptrs.explain import insight
from gptrs.model.gpt import GPTModel
from gptrs.sampling.config import SamplingConfig

CHARACTERS = "abcdefghij klmnopq,.rstuvwxyz\n"


class Letters:
    """A tokenizer of somebody's own, with texts for tokens."""

    n_vocab = len(CHARACTERS)

    def encode(self, text):
        return [CHARACTERS.index(character) for character in text]

    def decode(self, ids):
        return "".join(CHARACTERS[token] for token in ids)


TOKENIZER = Letters()
SHOWN = [character.replace(" ", "␣").replace("\n", "↵") for character in CHARACTERS]


def random_text(seed, length=None):
    rng = random.Random(seed)
    return "".join(rng.choices(CHARACTERS, k=length or rng.randint(1, 10)))


@pytest.fixture(params=range(20))
def twins(request, tmp_path):
    """transformers' GPT-2, the same model of ours, and a text."""
    rng = random.Random(request.param)
    torch.manual_seed(request.param)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=TOKENIZER.n_vocab,
            n_positions=12,
            n_embd=64 * rng.randint(1, 2),
            n_head=rng.choice([1, 2, 4]),
            n_layer=rng.randint(1, 3),
            initializer_range=0.3,
            attn_implementation="eager",
        )
    ).eval()
    theirs.save_pretrained(tmp_path)
    ours = GPTModel.from_pretrained(tmp_path)
    return theirs, ours, random_text(request.param)


def output_of(theirs, text):
    with torch.no_grad():
        return theirs(
            torch.tensor([TOKENIZER.encode(text)]),
            output_hidden_states=True,
            output_attentions=True,
        )


def close(values):
    return pytest.approx(np.asarray(values), rel=1e-4, abs=1e-5)


def test_inputs_and_attention_are_those_of_transformers(twins):
    theirs, ours, text = twins
    expected = output_of(theirs, text)
    found = insight.inputs_of(ours, TOKENIZER, text)
    assert found.tokens + found.positions == close(expected.hidden_states[0][0])
    assert found.tokens == close(theirs.transformer.wte.weight[TOKENIZER.encode(text)].detach())
    assert found.labels == [SHOWN[token] for token in TOKENIZER.encode(text)]
    attention = insight.attention_of(ours, TOKENIZER, text)
    assert attention.weights == close(torch.stack(expected.attentions)[:, 0])
    layer, head = len(expected.attentions) - 1, attention.weights.shape[1] - 1
    one = insight.attention_of(ours, TOKENIZER, text, layer=layer, head=head)
    assert one.weights == close(expected.attentions[layer][:1, head][None])


def test_the_lens_reads_transformers_hidden_states_through_its_last_norm_and_head(twins):
    theirs, ours, text = twins
    expected = output_of(theirs, text)
    *before, last = expected.hidden_states  # The last one has been through the norm already.
    with torch.no_grad():
        normed = [theirs.transformer.ln_f(hidden) for hidden in before] + [last]
        probabilities = torch.stack([theirs.lm_head(x)[0].softmax(-1) for x in normed])
    found = insight.logit_lens(ours, TOKENIZER, text)
    assert found.probabilities == close(probabilities.max(dim=-1).values)
    best = probabilities.argmax(dim=-1).tolist()
    assert found.guesses == [[SHOWN[token] for token in row] for row in best]


def test_sampling_steps_are_transformers_processors_one_after_the_other(twins):
    theirs, ours, text = twins
    ids = torch.tensor([TOKENIZER.encode(text)])
    logits = output_of(theirs, text).logits[:, -1]
    config = SamplingConfig(
        repetition_penalty=1.3, temperature=0.7, top_k=9, top_p=0.8, min_p=0.05, seed=3
    )
    found = insight.next_token_of(ours, TOKENIZER, text, config, shown=5)
    processors = {
        "the model": lambda ids, scores: scores,
        "repetition_penalty 1.3": RepetitionPenaltyLogitsProcessor(1.3),
        "temperature 0.7": TemperatureLogitsWarper(0.7),
        "top_k 9": TopKLogitsWarper(9),
        "top_p 0.8": TopPLogitsWarper(0.8),
        "min_p 0.05": MinPLogitsWarper(0.05),
    }
    assert list(found.steps) == list(processors)
    for name, process in processors.items():
        logits = process(ids, logits)
        assert found.steps[name] == close(logits.softmax(-1)[0])
    likeliest = output_of(theirs, text).logits[0, -1].topk(5).indices.tolist()
    assert found.ids == likeliest
    assert found.labels == [SHOWN[token] for token in likeliest]


def test_settings_that_are_off_are_no_steps_and_greedy_is_one():
    logits = np.array([0.1, 2.0, 0.3], dtype=np.float32)
    assert list(insight.sampling_steps(logits, SamplingConfig())) == ["the model"]
    steps = insight.sampling_steps(logits, SamplingConfig(temperature=0.0))
    assert steps["temperature 0"].tolist() == [0, 1, 0]


def test_tokens_of_half_a_character_are_shown_as_bytes():
    import gptrs

    tokenizer = gptrs.get_tokenizer("gpt2")
    ids = tokenizer.encode(" 龘\n")
    shown = insight.token_labels(tokenizer, ids)
    assert shown[-1] == "↵"
    assert "".join(shown).startswith("␣<0xE9>")
    assert shown == insight.token_labels(tokenizer.as_tiktoken(), ids)


# --- Positions ---


def tiny(pos, **settings):
    torch.manual_seed(1)
    cfg = {
        "vocab_size": TOKENIZER.n_vocab,
        "context_length": 24,
        "emb_dim": 16,
        "n_heads": 4,
        "n_layers": 2,
        "pos": pos,
    }
    return GPTModel(GPTConfig.of(cfg | settings)).eval()


@pytest.mark.parametrize("pos", ["learned", "sinusoidal"])
def test_vectors_of_positions_are_what_the_model_adds(pos):
    model = tiny(pos)
    vectors = insight.position_vectors(model)
    assert vectors.shape == (24, 16)
    text = "abcdef"
    added = insight.inputs_of(model, TOKENIZER, text)
    assert added.positions == close(vectors[:6])
    with torch.no_grad():
        hidden = model(torch.tensor([TOKENIZER.encode(text)]), return_hidden=True).hidden
    assert added.tokens + added.positions == close(hidden[0][0])


@pytest.mark.parametrize("n_heads", [1, 2, 4, 8, 16])
def test_alibis_scores_are_the_papers(n_heads):
    model = tiny("alibi", n_heads=n_heads, emb_dim=16)
    slopes = [2 ** (-8 * head / n_heads) for head in range(1, n_heads + 1)]
    found = insight.position_scores(model)
    assert found == close([[-slope * distance for distance in range(24)] for slope in slopes])


@pytest.mark.parametrize("max_distance", [20, 40, 128])
def test_t5s_scores_are_transformers(max_distance):
    model = tiny("t5", context_length=200, rel_max_distance=max_distance)
    torch.nn.init.normal_(model.pos_bias.weight)
    theirs = T5Attention(
        T5Config(
            d_model=16, d_kv=4, num_heads=4, relative_attention_max_distance=max_distance,
            is_decoder=True,
        ),
        has_relative_attention_bias=True,
    )  # fmt: skip
    theirs.relative_attention_bias.weight = model.pos_bias.weight
    bias = theirs.compute_bias(200, 200)[0, :, -1].flip(-1)
    assert insight.position_scores(model) == close(bias.detach())


def test_ropes_products_fall_from_one_and_are_those_of_turned_vectors():
    model = tiny("rope", emb_dim=64)
    found = insight.position_scores(model)
    assert found.shape == (1, 24)
    frequencies = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    expected = np.cos(np.outer(np.arange(24), frequencies)).mean(axis=1)
    assert found[0] == close(expected)


@pytest.mark.parametrize("pos", ["relative_key", "relative_key_query"])
@pytest.mark.parametrize("layer", [0, 1])
def test_relative_keys_scores_are_means_over_the_text(pos, layer):
    model, text = tiny(pos), "abc, def"
    torch.nn.init.normal_(model.trf_blocks[layer].att.positions.distance_embedding.weight)
    found = insight.position_scores(model, TOKENIZER, text, layer=layer)
    block = model.trf_blocks[layer]
    with torch.no_grad():
        hidden = model(torch.tensor([TOKENIZER.encode(text)]), return_hidden=True).hidden
        normed = block.norm1(hidden[layer])[0]
        q, k = (w(normed).view(8, 4, 4) for w in (block.att.W_query, block.att.W_key))
        E = block.att.positions.distance_embedding.weight.detach()
    for head in range(4):
        for distance in range(8):
            pairs = [(t, t - distance) for t in range(distance, 8)]
            terms = [
                q[t, head] @ E[distance]
                + (k[s, head] @ E[distance] if pos == "relative_key_query" else 0)
                for t, s in pairs
            ]
            expected = float(sum(terms) / len(terms)) / 2  # sqrt(head_dim)
            assert found[head, distance] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_transformer_xls_scores_are_a_number_for_each_head_and_distance():
    found = insight.position_scores(tiny("transformer_xl"), TOKENIZER, "abcde", layer=1)
    assert found.shape == (4, 5)
    assert np.isfinite(found).all()


# --- What cannot be shown ---


def test_what_is_not_there_is_said():
    model = tiny("learned")
    with pytest.raises(ConfigError, match="layer 2 was asked for; there are 2, counted from 0"):
        insight.attention_of(model, TOKENIZER, "ab", layer=2)
    with pytest.raises(ConfigError, match="head -1 was asked for; there are 4"):
        insight.attention_of(model, TOKENIZER, "ab", head=-1)
    with pytest.raises(DataError, match="25 tokens, more than context_length 24"):
        insight.logit_lens(model, TOKENIZER, "a" * 25)
    with pytest.raises(GenerationError, match="has no tokens"):
        insight.inputs_of(model, TOKENIZER, "")
    with pytest.raises(ConfigError, match='pos is "learned": it adds nothing to the scores'):
        insight.position_scores(model)
    with pytest.raises(ConfigError, match='pos is "alibi": no vectors are added'):
        insight.inputs_of(tiny("alibi"), TOKENIZER, "ab")
    with pytest.raises(ConfigError, match='pos is "none": it has no vector for a position'):
        insight.position_vectors(tiny("none"))
    with pytest.raises(ConfigError, match="depend on the queries of a text"):
        insight.position_scores(tiny("relative_key"))


def test_a_model_in_training_stays_in_training_and_its_dropout_is_off_for_the_while():
    model = tiny("learned", drop_rate=0.5).train()
    first, second = (insight.logit_lens(model, TOKENIZER, "abc") for _ in range(2))
    assert np.array_equal(first.probabilities, second.probabilities)
    assert model.training
