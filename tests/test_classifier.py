"""The classifier against its model called plainly, the book's recipe, scikit-learn's tools."""

import json
import pickle
import pydoc_data.topics
import random
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

import gptrs
from gptrs.classifier.body import Train, private_copy
from gptrs.classifier.classifier import LEARNING_RATES, Classifier
from gptrs.classifier.classifier import POOLINGS as DEFAULT_POOLINGS
from gptrs.classifier.features import BlockInputs, TokenTexts
from gptrs.classifier.labels import confusion_figure, confusion_table
from gptrs.commands import finetune as finetune_commands
from gptrs.config import Pos
from gptrs.devices import Precision
from gptrs.embeddings.pooling_kinds import Pooling
from gptrs.errors import CheckpointError, ConfigError, DataError, MissingExtraError, TrainingError
from gptrs.model.lora import add_lora

KINDS, POOLINGS, TRAIN = get_args(Pos), get_args(Pooling), get_args(Train)
# A small vocabulary: AdamW would spend its time on GPT-2's 50,257 embeddings.
TOKENIZER = gptrs.train_tokenizer([pydoc_data.topics.__file__], 1000)
PLAIN = {"tokenizer": TOKENIZER, "device": "cpu", "dtype": "float32"}
SHAPE = {
    "vocab_size": 1000,
    "context_length": 64,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": False,
}
SPAM = ["free", "prize", "winner", "cash", "urgent", "claim", "bonus", "credit", "offer", "click"]
HAM = [
    "meeting",
    "lunch",
    "train",
    "report",
    "thanks",
    "office",
    "weather",
    "garden",
    "book",
    "tea",
]
BOTH = ["the", "a", "to", "and", "of", "for", "you", "we", "is", "it"]


def spam_set(num_texts, seed=0):
    """Texts of 4 to 12 words, half of which give them away; labels "spam" and "ham" in turns."""
    draw = random.Random(seed)
    texts, labels = [], []
    for number in range(num_texts):
        label, own = (("spam", SPAM), ("ham", HAM))[number % 2]
        words = [
            draw.choice(own if place % 3 == 0 else BOTH) for place in range(draw.randint(4, 12))
        ]
        draw.shuffle(words)
        texts.append(" ".join(words))
        labels.append(label)
    return texts, labels


def gpt(seed=0, **changes):
    torch.manual_seed(seed)
    return gptrs.GPTModel(SHAPE | changes).eval()


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def model():
    return gpt()


@pytest.fixture(scope="module")
def fitted(model):
    """One classifier a way to train, each with two epochs."""
    texts, labels = spam_set(40)
    rates = dict.fromkeys(TRAIN, 1e-3)
    return {
        train: Classifier(model, train=train, learning_rate=rates[train], epochs=2, **PLAIN).fit(
            texts, labels
        )
        for train in TRAIN
    }


# --- what it learns ---


def test_the_books_recipe_learns_to_tell_spam_from_ham():
    texts, labels = spam_set(200)
    recipe = {"train": "last_block", "batch_size": 8, "weight_decay": 0.1, "patience": None}
    classifier = Classifier(gpt(emb_dim=64), 2, learning_rate=1e-3, epochs=5, **recipe, **PLAIN)
    classifier.fit(texts, labels)
    assert isinstance(classifier.model_.out_head, nn.Linear)
    assert classifier.model_.out_head.weight.shape == (2, 64)
    assert classifier.score(*spam_set(200, seed=1)) > 0.9


@pytest.mark.parametrize("seed", range(20))
def test_a_step_of_the_books_recipe_is_the_books(seed):
    texts = [f"the {word}" for word in SPAM + HAM]
    labels = [number % 3 for number in range(len(texts))]
    ids = torch.tensor([gptrs.get_tokenizer("gpt2").encode(text) for text in texts])
    model = gpt(seed, vocab_size=50257, n_layers=seed % 3 + 1)
    plain = PLAIN | {"tokenizer": gptrs.get_tokenizer("gpt2").as_tiktoken()}
    recipe = {"train": "last_block", "epochs": 1, "batch_size": 99, "validation_fraction": 0}
    stepped, expected = (
        Classifier(model, 3, learning_rate=rate, seed=seed, **recipe, **plain)
        .fit(texts, labels)
        .model_
        for rate in (1e-3, 1e-30)  # The second is as it was before.
    )
    before = expected.out_head.weight.clone()
    learning = [p for p in expected.parameters() if p.requires_grad]
    loss = nn.functional.cross_entropy(expected(ids)[:, -1, :], torch.tensor(labels))
    loss.backward()
    nn.utils.clip_grad_norm_(learning, 1.0)
    groups = [[p for p in learning if p.ndim > 1], [p for p in learning if p.ndim == 1]]
    torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0}],
        lr=1e-3,
    ).step()
    for name, weight in expected.named_parameters():
        # AdamW's first step is as long for a gradient of 1e-9, which is rounding, as for any.
        is_sure = ... if weight.grad is None else weight.grad.abs() > 1e-6
        found = stepped.get_parameter(name)
        torch.testing.assert_close(found[is_sure], weight[is_sure], rtol=0, atol=1e-4)
    assert (stepped.out_head.weight - before).abs().max() > 5e-4


@pytest.mark.parametrize("train", TRAIN)
def test_every_way_to_train_learns(train):
    rate = {"head": None, "lora": 1e-2}.get(train, 3e-3)
    settings = {"train": train, "pooling": "mean", "learning_rate": rate, "epochs": 8}
    classifier = Classifier(gpt(emb_dim=32), **settings, **PLAIN).fit(*spam_set(200))
    assert classifier.score(*spam_set(100, seed=1)) > 0.85


def test_the_same_seed_gives_the_same_classifier_and_another_seed_another(model):
    texts, labels = spam_set(40)
    state_of_torch = torch.get_rng_state()
    probabilities = [
        Classifier(model, train="lora", epochs=1, seed=seed, **PLAIN)
        .fit(texts, labels)
        .predict_proba(texts)
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(probabilities[0], probabilities[1])
    assert not np.allclose(probabilities[0], probabilities[2])
    assert torch.equal(torch.get_rng_state(), state_of_torch)


@pytest.mark.parametrize("train", TRAIN)
def test_only_what_was_named_learns(model, fitted, train):
    before = model.state_dict()
    changed = {
        name
        for name, tensor in fitted[train].model_.state_dict().items()
        if name not in before or not torch.equal(tensor, before[name])
    }
    expected = {
        "head": (),
        "last_block": ("trf_blocks.1.", "final_norm."),
        "lora": tuple(f"trf_blocks.{n}.att.W_{w}.lora" for n in (0, 1) for w in ("query", "value")),
        "all": ("trf_blocks.0.", "trf_blocks.1.", "tok_emb.", "pos_emb.", "final_norm."),
    }[train]
    assert {name for name in changed if not name.startswith((*expected, "out_head."))} == set()
    assert all(any(name.startswith(part) for name in changed) for part in expected)


@pytest.mark.parametrize("train", TRAIN)
def test_the_callers_model_is_never_changed(train):
    model = gpt(tie_embeddings=True, init="gpt2", drop_rate=0.1).train()
    hook = model.trf_blocks[0].register_forward_hook(lambda *_: None)
    before = state(model)
    Classifier(model, train=train, epochs=1, **PLAIN).fit(*spam_set(12))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert model.cfg.tie_embeddings
    assert model.out_head.weight is model.tok_emb.weight
    assert len(model.trf_blocks[0]._forward_hooks) == 1
    hook.remove()


def test_adapters_of_the_callers_model_are_merged_in_the_copy():
    texts, labels = spam_set(20)
    model = gpt()
    add_lora(model, 4, 8)
    for layer in (block.att.W_query for block in model.trf_blocks):
        nn.init.normal_(layer.lora_B)
    classifier = Classifier(model, train="lora", epochs=1, **PLAIN).fit(texts, labels)
    weight = model.trf_blocks[0].att.W_query.merged().weight
    assert torch.equal(classifier.model_.trf_blocks[0].att.W_query.weight, weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_in_another_dtype_is_copied_in_float32(dtype):
    classifier = Classifier(gpt().to(dtype), epochs=1, **PLAIN).fit(*spam_set(20))
    assert {parameter.dtype for parameter in classifier.model_.parameters()} == {torch.float32}


@pytest.mark.parametrize("train", TRAIN)
def test_bfloat16_is_for_the_matmuls_of_the_body_alone(train):
    settings = {"train": train, "pooling": "mean", "epochs": 2, "learning_rate": 1e-3}
    texts, labels = spam_set(40)
    found, expected = (
        Classifier(gpt(), **settings, **(PLAIN | {"dtype": dtype})).fit(texts, labels)
        for dtype in ("bfloat16", "float32")
    )
    assert {parameter.dtype for parameter in found.model_.parameters()} == {torch.float32}
    assert np.allclose(found.predict_proba(texts), expected.predict_proba(texts), atol=0.05)


# --- how often the model runs ---


class Count:
    """How many tokens a module was given."""

    def __init__(self, module):
        self.tokens = 0
        module.register_forward_hook(self)

    def __call__(self, module, inputs, output):
        self.tokens += inputs[0].shape[0] * inputs[0].shape[1]


@pytest.mark.parametrize("train", ["head", "last_block"])
def test_frozen_layers_see_each_text_once_however_many_epochs_there_are(monkeypatch, train):
    counts = []

    def counted_copy(*args):
        own = private_copy(*args)
        counts.append((Count(own.trf_blocks[0]), Count(own.trf_blocks[1])))
        return own

    monkeypatch.setattr("gptrs.classifier.classifier.private_copy", counted_copy)
    texts, labels = spam_set(40)
    for epochs in (1, 5):
        settings = {"train": train, "epochs": epochs, "patience": None}
        Classifier(gpt(), **settings, **PLAIN).fit(texts, labels)
    (first, first_last), (second, second_last) = counts
    assert first.tokens == second.tokens > 0
    if train == "head":
        assert first_last.tokens == second_last.tokens == first.tokens
    else:
        assert second_last.tokens > 4 * first_last.tokens


@pytest.mark.parametrize("seed", range(24))
def test_what_is_kept_before_the_last_block_gives_what_the_whole_model_gives(seed):
    draw = random.Random(seed)
    pos, pooling = KINDS[seed % len(KINDS)], draw.choice(POOLINGS)
    model = gpt(seed, vocab_size=61, pos=pos, n_layers=draw.randint(1, 3))
    lengths = [draw.randint(1, 20) for _ in range(9)]
    rows = [torch.randint(0, 61, (length,)) for length in lengths]
    whole = TokenTexts(model, rows, pooling, Precision(torch.float32, ""))
    kept = BlockInputs(whole, lambda _: None)
    chosen = torch.tensor(draw.sample(range(9), 5))
    torch.testing.assert_close(kept.vectors(chosen), whole.vectors(chosen), rtol=1e-4, atol=1e-5)


def test_without_room_for_hidden_states_the_last_block_still_learns_the_same(monkeypatch, model):
    texts, labels = spam_set(40)
    found = []
    for fits in (True, False):
        monkeypatch.setattr(BlockInputs, "fits", staticmethod(lambda _, fits=fits: fits))
        classifier = Classifier(model, train="last_block", epochs=2, **PLAIN).fit(texts, labels)
        found.append(classifier.predict_proba(texts))
    assert np.allclose(*found, atol=1e-4)


# --- predictions ---


def plainly_pooled(hidden_TD, pooling):
    places = torch.arange(1, len(hidden_TD) + 1.0)[:, None]
    return {
        "last": lambda: hidden_TD[-1],
        "cls": lambda: hidden_TD[0],
        "mean": lambda: hidden_TD.mean(0),
        "max": lambda: hidden_TD.max(0).values,
        "weighted_mean": lambda: (hidden_TD * places).sum(0) / places.sum(),
    }[pooling]()


@pytest.mark.parametrize("seed", range(21))
def test_probabilities_are_those_of_the_model_called_on_each_text_alone(seed):
    pos, pooling = KINDS[seed % len(KINDS)], POOLINGS[seed % len(POOLINGS)]
    texts, labels = spam_set(16, seed)
    texts.append(" ".join(texts))  # longer than the context
    labels.append("ham")
    model = gpt(seed, pos=pos)
    classifier = Classifier(model, pooling=pooling, epochs=1, **PLAIN).fit(texts, labels)
    assert classifier.num_cut_ == 1
    encode = TOKENIZER.as_tiktoken().encode
    for text, found in zip(texts, classifier.predict_proba(texts), strict=True):
        ids = torch.tensor([encode(text)[:64]])
        with torch.no_grad():
            if pooling == "last":
                logits = classifier.model_(ids)[0, -1]
            else:
                pooled = plainly_pooled(classifier.model_.hidden_states(ids)[0], pooling)
                logits = classifier.model_.out_head(pooled)
        np.testing.assert_allclose(found, torch.softmax(logits, 0).numpy(), rtol=1e-3, atol=1e-5)
    assert classifier.predict(texts).tolist() == [
        classifier.classes_[row.argmax()] for row in classifier.predict_proba(texts)
    ]


def test_special_tokens_in_a_text_are_ordinary_text(fitted):
    assert fitted["head"].predict(["free <|endoftext|> prize"])[0] in ("ham", "spam")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["b", "a", "c"], ["a", "b", "c"]),
        ([7, -1, 7], [-1, 7]),
        ([True, False, True], [False, True]),
        (np.array([2, 0, 1]), [0, 1, 2]),
        (np.array(["y", "x", "y"]), ["x", "y"]),
        ([0.5, 1.5, 0.5], [0.5, 1.5]),
    ],
)
def test_classes_are_the_labels_sorted_and_of_their_own_kind(model, labels, classes):
    texts = [text for text, label in zip(["one", "two", "three"] * 4, labels, strict=False)]
    classifier = Classifier(model, epochs=1, **PLAIN).fit(texts, labels)
    assert classifier.classes_.tolist() == classes
    assert {type(label) for label in classifier.predict(texts).tolist()} == {type(classes[0])}


def test_numbered_classes_need_not_all_occur(model):
    classifier = Classifier(model, 4, epochs=1, **PLAIN).fit(["a", "b", "c"], [3, 1, 3])
    assert classifier.classes_.tolist() == [0, 1, 2, 3]
    assert classifier.predict_proba(["a"]).shape == (1, 4)


# --- validation ---


def test_the_best_epochs_weights_are_kept_and_patience_ends_the_training(model):
    texts, labels = spam_set(60)
    classifier = Classifier(
        model, train="all", learning_rate=3e-2, epochs=50, patience=2, validation_fraction=0.3,
        **PLAIN,
    ).fit(texts, labels)  # fmt: skip
    losses = [epoch.val_loss for epoch in classifier.history_]
    assert len(losses) == classifier.best_epoch_ + 2 < 50
    assert losses[classifier.best_epoch_ - 1] == min(losses)
    held_out = classifier.split_.validation.tolist()
    probabilities = classifier.predict_proba([texts[number] for number in held_out])
    true = [classifier.classes_.tolist().index(labels[number]) for number in held_out]
    loss = -np.log(probabilities[np.arange(len(true)), true]).mean()
    assert loss == pytest.approx(min(losses), rel=1e-3)


@pytest.mark.parametrize("seed", range(20))
def test_the_same_share_of_each_class_is_held_out(model, seed):
    draw = random.Random(seed)
    labels = [draw.choice("aaab") for _ in range(50)] + ["c"]
    texts = [f"text {number}" for number in range(51)]
    classifier = Classifier(model, epochs=1, validation_fraction=0.2, seed=seed, **PLAIN)
    split = classifier.fit(texts, labels).split_
    assert sorted([*split.train.tolist(), *split.validation.tolist()]) == list(range(51))
    held_out = [labels[number] for number in split.validation.tolist()]
    assert [held_out.count(c) for c in "abc"] == [round(labels.count(c) * 0.2) for c in "abc"]
    assert classifier.confusion_.sum(axis=1).tolist() == [held_out.count(c) for c in "abc"]


def test_without_validation_every_epoch_runs_and_the_last_is_kept(model):
    classifier = Classifier(model, validation_fraction=0, epochs=5, patience=1, **PLAIN)
    classifier.fit(*spam_set(20))
    assert [epoch.val_loss for epoch in classifier.history_] == [None] * 5
    assert classifier.best_epoch_ == 5
    assert not classifier.confusion_.any()
    assert len(classifier.split_.train) == 20


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("seed", range(10))
def test_a_text_counts_as_its_class_has_few(model, seed, class_weight):
    draw = random.Random(seed)
    numbers = np.array([0, 1, 2, *draw.choices(range(3), [6, 2, 1], k=20)])
    texts = [draw.choice(SPAM + HAM) for _ in numbers]
    settings = {"class_weight": class_weight, "validation_fraction": 0, "seed": seed}
    learned_nothing = {"epochs": 1, "learning_rate": 1e-30, "batch_size": 99}
    classifier = Classifier(model, **settings, **learned_nothing, **PLAIN).fit(texts, numbers)
    losses = -np.log(classifier.predict_proba(texts)[np.arange(len(numbers)), numbers])
    weights = np.ones(len(numbers))
    if class_weight == "balanced":
        weights = len(numbers) / (3 * np.bincount(numbers)[numbers])
    expected = np.average(losses, weights=weights)
    assert classifier.history_[0].train_loss == pytest.approx(expected, rel=1e-3)


def test_no_texts_have_no_classes(fitted):
    assert fitted["head"].predict([]).tolist() == []
    assert fitted["head"].predict_proba([]).shape == (0, 2)
    with pytest.raises(DataError, match="0 texts and 0 labels"):
        fitted["head"].score([], [])


@pytest.mark.parametrize("train", TRAIN)
def test_a_classifier_can_be_sent_to_another_process(fitted, train):
    texts, _ = spam_set(9)
    again = pickle.loads(pickle.dumps(fitted[train]))
    assert np.array_equal(again.predict_proba(texts), fitted[train].predict_proba(texts))


def test_a_confusion_matrix_counts_what_was_taken_for_what(fitted):
    texts, labels = spam_set(30, seed=3)
    classifier = fitted["all"]
    expected = np.zeros((2, 2), dtype=int)
    names = classifier.classes_.tolist()
    for true, found in zip(labels, classifier.predict(texts), strict=True):
        expected[names.index(true), names.index(found)] += 1
    matrix = classifier.confusion_matrix(texts, labels)
    assert np.array_equal(matrix, expected)
    assert np.trace(matrix) / 30 == classifier.score(texts, labels)
    assert classifier.confusion_matrix() is classifier.confusion_
    figure = confusion_figure(matrix, names)
    drawn = [text.get_text() for text in figure.axes[0].texts]
    assert drawn == [str(number) for number in matrix.flatten()]
    assert "spam" in confusion_table(matrix, names)


def test_a_picture_without_matplotlib_is_refused_with_the_pip_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install \"gptrs\[plots\]\""):
        confusion_figure(np.eye(2, dtype=np.int64), ["a", "b"])


# --- files ---


@pytest.mark.parametrize("include_model", [True, False])
@pytest.mark.parametrize("train", TRAIN)
def test_a_saved_classifier_says_the_same(tmp_path, train, include_model):
    gpt(drop_rate=0.1).save_pretrained(tmp_path / "gpt", tokenizer=TOKENIZER)
    texts, labels = spam_set(30)
    plain = PLAIN | {"tokenizer": None}  # The one beside the model.
    classifier = Classifier(str(tmp_path / "gpt"), train=train, epochs=1, **plain)
    classifier.fit(texts, labels)
    folder = tmp_path / "classifier"
    if train == "all" and not include_model:
        with pytest.raises(ConfigError, match="every weight has learned"):
            classifier.save(folder, include_model=False)
        return
    classifier.save(folder, include_model=include_model)
    state_of_torch = torch.get_rng_state()
    again = Classifier.load(folder, device="cpu")
    assert torch.equal(torch.get_rng_state(), state_of_torch)
    assert np.array_equal(again.predict_proba(texts), classifier.predict_proba(texts))
    assert again.classes_.tolist() == classifier.classes_.tolist()
    assert again.history_ == classifier.history_
    assert again.tokenizer_ == classifier.tokenizer_
    parameters = classifier.get_params() | {"model": again.model, "tokenizer": again.tokenizer}
    assert again.get_params() == parameters | {"lora_targets": list(classifier.lora_targets)}
    assert again.fit(texts, labels).score(texts, labels) >= 0
    if not include_model:
        gpt(seed=1).save_pretrained(tmp_path / "gpt")
        with pytest.raises(CheckpointError, match="was trained on another model"):
            Classifier.load(folder, device="cpu")


def test_leaving_out_the_model_needs_its_path(tmp_path, fitted):
    with pytest.raises(ConfigError, match="include_model=False needs the path"):
        fitted["head"].save(tmp_path, include_model=False)


def test_a_second_save_replaces_the_first_and_what_a_kill_left(tmp_path, fitted):
    fitted["head"].save(tmp_path)
    for name in ("classifier-{}.safetensors", "classifier.json"):
        (tmp_path / f".tmp-{name}-0123abcd").write_bytes(b"half")
    fitted["lora"].save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    texts, _ = spam_set(9)
    again = Classifier.load(tmp_path, device="cpu")
    assert np.array_equal(again.predict_proba(texts), fitted["lora"].predict_proba(texts))


def test_a_damaged_foreign_or_missing_classifier_is_refused_by_name(tmp_path, fitted):
    with pytest.raises(CheckpointError, match=r"classifier\.json: no such file"):
        Classifier.load(tmp_path)
    fitted["lora"].save(tmp_path)
    described = json.loads((tmp_path / "classifier.json").read_text())
    for name, value in (
        ("classes", 5), ("params", {"pool": 1}), ("model", {"emb_dim": 15}), ("history", [{}]),
        ("classes", ["a", "b", "c"]), ("version", 3), ("format", "other"), ("tensors", "../x"),
    ):  # fmt: skip
        (tmp_path / "classifier.json").write_text(json.dumps(described | {name: value}))
        with pytest.raises(CheckpointError, match=tmp_path.name):
            Classifier.load(tmp_path, device="cpu")
    (tmp_path / "classifier.json").write_text(json.dumps(described))
    file = tmp_path / described["tensors"]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged: its content changed"):
        Classifier.load(tmp_path)


# --- what is refused ---


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        ("text", ["a"], "texts are several strs"),
        (5, ["a"], "texts are several strs"),
        (["a", ""], [0, 1], "text 1 is empty"),
        (["a", None], [0, 1], r"text 1 is None \(NoneType\)"),
        (["a", 3], [0, 1], r"text 1 is 3 \(int\)"),
        (["a", "b"], [0], "there are 2 texts and 1 labels"),
        (["a", "b", "c"], [0, 1], "there are 3 texts and 2 labels"),
        (["a", "b"], ["x", "x"], "two classes at least, found one class only, x"),
        ([], [], "two classes at least, found none"),
        (
            ["a", "b"],
            [0, "x"],
            r"of one kind, found int \(label 0\) and str \(label 1\)",
        ),
        (["a", "b"], [0, None], "label 1 is None"),
        (["a", "b"], [0, float("nan")], "label 1 is nan"),
        (["a", "b"], [[0, 1], [1, 0]], r"label 0 is \[0, 1\]"),
        (["a", "b"], "xy", "labels are one for each text"),
    ],
)
def test_texts_and_labels_that_make_no_sense_are_refused(model, texts, labels, message):
    with pytest.raises(DataError, match=message):
        Classifier(model, **PLAIN).fit(texts, labels)


@pytest.mark.parametrize(
    "wrong",
    [
        {"train": "body"}, {"pooling": "first"}, {"epochs": 0}, {"batch_size": 1.5},
        {"learning_rate": 0}, {"weight_decay": -1}, {"class_weight": {}}, {"patience": 0},
        {"validation_fraction": 1}, {"max_length": 65}, {"max_length": 0}, {"seed": -1},
        {"device": "tpu"}, {"dtype": "int8"}, {"num_classes": 3}, {"model": 5},
        {"train": "lora", "lora_rank": 0}, {"train": "lora", "lora_targets": "W_q"},
        {"tokenizer": object()},
    ],
)  # fmt: skip
def test_an_impossible_parameter_is_refused_by_fit_not_by_the_constructor(model, wrong):
    classifier = Classifier(**({"model": model} | PLAIN | wrong))
    message = next(name for name in wrong if name != "train" or len(wrong) == 1)
    message = message.removeprefix("lora_").removesuffix("s")
    with pytest.raises(ConfigError, match=f"(?i){message}"):
        classifier.fit(*spam_set(10))
    assert not hasattr(classifier, "model_")


def test_a_tokenizer_with_more_ids_than_the_model_is_refused():
    with pytest.raises(ConfigError, match="vocab_size 61, and the tokenizer has 50257 ids"):
        Classifier(gpt(vocab_size=61), device="cpu").fit(*spam_set(10))


def test_labels_that_were_not_learned_are_refused_by_name(fitted):
    with pytest.raises(DataError, match="not learned: eggs; the classes are ham, spam"):
        fitted["head"].score(["a", "b"], ["spam", "eggs"])
    with pytest.raises(DataError, match="not learned: 1; the classes are ham, spam"):
        fitted["head"].score(["a"], [1])


def test_what_knows_nothing_yet_says_so(model, tmp_path):
    classifier = Classifier(model)
    for call in (
        lambda: classifier.predict(["a"]),
        lambda: classifier.score(["a"], ["b"]),
        lambda: classifier.confusion_matrix(),
        lambda: classifier.save(tmp_path),
    ):
        with pytest.raises(ConfigError, match=r"call fit, or Classifier\.load"):
            call()


def test_a_loss_that_is_not_finite_ends_the_training(model):
    with pytest.raises(TrainingError, match="in epoch 1: try a lower learning_rate than 1e"):
        Classifier(model, train="all", learning_rate=1e30, **PLAIN).fit(*spam_set(60))


# --- scikit-learn ---


def test_parameters_are_read_and_set_as_scikit_learn_does(model):
    classifier = Classifier(model, 2, train="lora", lora_targets=("W_key",))
    parameters = classifier.get_params()
    assert parameters["train"] == "lora"
    assert parameters["lora_targets"] == ("W_key",)
    assert Classifier(**parameters).get_params() == parameters
    assert classifier.set_params(epochs=3).epochs == 3
    with pytest.raises(ConfigError, match="a Classifier has no 'epoch'; it has model, num_classes"):
        classifier.set_params(epoch=3)


def test_parameters_that_are_set_after_fit_wait_for_the_next(tmp_path, model):
    texts, labels = spam_set(20)
    classifier = Classifier(model, epochs=1, **PLAIN).fit(texts, labels)
    before = classifier.predict_proba(texts)
    classifier.set_params(pooling="mean", train="lora", max_length=2, epochs=np.int64(2))
    assert np.array_equal(classifier.predict_proba(texts), before)
    classifier.save(tmp_path)
    assert np.array_equal(Classifier.load(tmp_path, device="cpu").predict_proba(texts), before)
    classifier.fit(texts, labels).save(tmp_path)
    assert not np.array_equal(classifier.predict_proba(texts), before)
    assert Classifier.load(tmp_path).epochs == 2


def test_scikit_learns_tools_work():
    base = pytest.importorskip("sklearn.base")
    selection = pytest.importorskip("sklearn.model_selection")
    texts, labels = spam_set(120)
    classifier = Classifier(gpt(emb_dim=32), pooling="mean", epochs=8, **PLAIN)
    copy = base.clone(classifier)
    assert copy.get_params() == classifier.get_params()
    assert copy is not classifier
    assert base.is_classifier(classifier)
    scores = selection.cross_val_score(classifier, texts, labels, cv=3)
    assert len(scores) == 3
    assert scores.mean() > 0.65
    search = selection.GridSearchCV(classifier, {"pooling": ["last", "mean"]}, cv=2)
    assert search.fit(texts, labels).best_params_["pooling"] in ("last", "mean")
    assert search.score(texts, labels) == search.best_estimator_.score(texts, labels)


@pytest.mark.parametrize("seed", range(20))
def test_scikit_learn_counts_and_weighs_the_same(fitted, seed):
    metrics = pytest.importorskip("sklearn.metrics")
    weights = pytest.importorskip("sklearn.utils.class_weight")
    from gptrs.classifier.labels import balanced_weights

    texts, labels = spam_set(20, seed)
    classifier = fitted["all"]
    found = classifier.predict(texts)
    assert np.array_equal(
        classifier.confusion_matrix(texts, labels), metrics.confusion_matrix(labels, found)
    )
    numbers = np.random.default_rng(seed).integers(0, 3, 40)
    theirs = weights.compute_class_weight("balanced", classes=np.arange(3), y=numbers)
    np.testing.assert_allclose(balanced_weights(torch.from_numpy(numbers), 3).numpy(), theirs)


def test_the_command_offers_what_the_library_has():
    assert finetune_commands.TRAIN == TRAIN
    assert {*LEARNING_RATES} == {*DEFAULT_POOLINGS} == {*TRAIN}


@pytest.mark.parametrize("train", TRAIN)
def test_frozen_features_are_averaged_by_default_and_else_the_last_token_decides(model, train):
    texts, labels = spam_set(24)
    settings = {"train": train, "epochs": 1, **PLAIN}
    expected = "mean" if train == "head" else "last"
    default = Classifier(model, **settings).fit(texts, labels)
    asked = Classifier(model, pooling=expected, **settings).fit(texts, labels)
    np.testing.assert_array_equal(default.predict_proba(texts), asked.predict_proba(texts))
