"""gptrs: the GPT of "Build a Large Language Model (From Scratch)" at production speed.

    from gptrs import GPT_CONFIG_124M, GPTModel, create_dataloader_v1, generate_text_simple

Names are imported when they are first used: `import gptrs` alone imports neither torch nor NumPy.
"""

from __future__ import annotations

from importlib import import_module

# typing's own flag, without the import: that takes as long as all that gptrs does when it starts.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gptrs.classifier.classifier import Classifier as Classifier
    from gptrs.config import GPT_CONFIG_124M as GPT_CONFIG_124M
    from gptrs.config import PRESETS as PRESETS
    from gptrs.config import GPTConfig as GPTConfig
    from gptrs.config import get_config as get_config
    from gptrs.data.dataset import GPTDatasetV1 as GPTDatasetV1
    from gptrs.data.dataset import create_dataloader_v1 as create_dataloader_v1
    from gptrs.data.loader import WindowLoader as WindowLoader
    from gptrs.embeddings.embedder import Embedder as Embedder
    from gptrs.embeddings.embedder import embed as embed
    from gptrs.embeddings.embedder import embed_iter as embed_iter
    from gptrs.embeddings.passages import Passage as Passage
    from gptrs.embeddings.passages import read_passages as read_passages
    from gptrs.embeddings.token_vectors import fold_projection as fold_projection
    from gptrs.embeddings.token_vectors import load_token_vectors as load_token_vectors
    from gptrs.embeddings.vector_index import VectorIndex as VectorIndex
    from gptrs.embeddings.vector_index_building import build_index as build_index
    from gptrs.embeddings.word2vec import train_word2vec as train_word2vec
    from gptrs.embeddings.word_vectors import WordVectors as WordVectors
    from gptrs.errors import GptrsError as GptrsError
    from gptrs.generation.book import generate as generate
    from gptrs.generation.book import generate_text_simple as generate_text_simple
    from gptrs.generation.book import text_to_token_ids as text_to_token_ids
    from gptrs.generation.book import token_ids_to_text as token_ids_to_text
    from gptrs.generation.completions import Completion as Completion
    from gptrs.generation.completions import TokenLogprobs as TokenLogprobs
    from gptrs.generation.generator import Generator as Generator
    from gptrs.generation.scoring import Score as Score
    from gptrs.generation.transformers_sampler import transformers_sampler as transformers_sampler
    from gptrs.model.gpt import GPTModel as GPTModel
    from gptrs.model.kv_cache import KVCache as KVCache
    from gptrs.model.layers import GELU as GELU
    from gptrs.model.layers import FeedForward as FeedForward
    from gptrs.model.layers import LayerNorm as LayerNorm
    from gptrs.model.layers import MultiHeadAttention as MultiHeadAttention
    from gptrs.model.layers import TransformerBlock as TransformerBlock
    from gptrs.model.lora import add_lora as add_lora
    from gptrs.model.lora import load_lora as load_lora
    from gptrs.model.lora import lora_state_dict as lora_state_dict
    from gptrs.model.lora import merge_lora as merge_lora
    from gptrs.model.lora import merged_copy as merged_copy
    from gptrs.model.lora import save_lora as save_lora
    from gptrs.sampling.config import SamplingConfig as SamplingConfig
    from gptrs.sampling.sampler import Sampler as Sampler
    from gptrs.store.building import build_store as build_store
    from gptrs.store.building import merge_stores as merge_stores
    from gptrs.store.token_store import TokenStore as TokenStore
    from gptrs.store.token_store import convert_store as convert_store
    from gptrs.text.named_tokenizers import get_tokenizer as get_tokenizer
    from gptrs.text.stream_decoder import StreamDecoder as StreamDecoder
    from gptrs.text.tokenizer import Tokenizer as Tokenizer
    from gptrs.text.tokenizer_training import train_tokenizer as train_tokenizer
    from gptrs.training.book import calc_loss_batch as calc_loss_batch
    from gptrs.training.book import calc_loss_loader as calc_loss_loader
    from gptrs.training.book import evaluate_model as evaluate_model
    from gptrs.training.book import generate_and_print_sample as generate_and_print_sample
    from gptrs.training.book import plot_losses as plot_losses
    from gptrs.training.book import train_model_simple as train_model_simple
    from gptrs.training.callbacks import Callback as Callback
    from gptrs.training.config import TrainingConfig as TrainingConfig
    from gptrs.training.instructions.data import instruction_data as instruction_data
    from gptrs.training.instructions.dataset import InstructionDataset as InstructionDataset
    from gptrs.training.instructions.dataset import custom_collate_fn as custom_collate_fn
    from gptrs.training.instructions.template import format_input as format_input
    from gptrs.training.instructions.template import format_prompt as format_prompt
    from gptrs.training.instructions.template import read_instructions as read_instructions
    from gptrs.training.trainer import TrainingResult as TrainingResult
    from gptrs.training.trainer import train as train
    from gptrs.weights.book import load_weights_into_gpt as load_weights_into_gpt
    from gptrs.weights.checkpoint import load_checkpoint as load_checkpoint
    from gptrs.weights.checkpoint import save_checkpoint as save_checkpoint
    from gptrs.weights.pretrained import from_hub as from_hub

_EXPORTS = {
    "store.building": ("build_store", "merge_stores"),
    "weights.checkpoint": ("load_checkpoint", "save_checkpoint"),
    "config": ("GPT_CONFIG_124M", "PRESETS", "GPTConfig", "get_config"),
    "data.dataset": ("GPTDatasetV1", "create_dataloader_v1"),
    "classifier.classifier": ("Classifier",),
    "embeddings.embedder": ("Embedder", "embed", "embed_iter"),
    "errors": ("GptrsError",),
    "generation.book": (
        "generate",
        "generate_text_simple",
        "text_to_token_ids",
        "token_ids_to_text",
    ),
    "generation.completions": ("Completion", "TokenLogprobs"),
    "generation.generator": ("Generator",),
    "generation.scoring": ("Score",),
    "model.kv_cache": ("KVCache",),
    "model.layers": ("GELU", "FeedForward", "LayerNorm", "MultiHeadAttention", "TransformerBlock"),
    "data.loader": ("WindowLoader",),
    "training.instructions.template": ("format_input", "format_prompt", "read_instructions"),
    "training.instructions.data": ("instruction_data",),
    "training.instructions.dataset": ("InstructionDataset", "custom_collate_fn"),
    "model.lora": (
        "add_lora",
        "load_lora",
        "lora_state_dict",
        "merge_lora",
        "merged_copy",
        "save_lora",
    ),
    "model.gpt": ("GPTModel",),
    "embeddings.passages": ("Passage", "read_passages"),
    "weights.pretrained": ("from_hub",),
    "sampling.sampler": ("Sampler",),
    "sampling.config": ("SamplingConfig",),
    "store.token_store": ("TokenStore", "convert_store"),
    "text.stream_decoder": ("StreamDecoder",),
    "embeddings.token_vectors": ("fold_projection", "load_token_vectors"),
    "text.named_tokenizers": ("get_tokenizer",),
    "text.tokenizer": ("Tokenizer",),
    "text.tokenizer_training": ("train_tokenizer",),
    "training.trainer": ("TrainingResult", "train"),
    "training.book": (
        "calc_loss_batch",
        "calc_loss_loader",
        "evaluate_model",
        "generate_and_print_sample",
        "plot_losses",
        "train_model_simple",
    ),
    "training.callbacks": ("Callback",),
    "training.config": ("TrainingConfig",),
    "generation.transformers_sampler": ("transformers_sampler",),
    "embeddings.vector_index": ("VectorIndex",),
    "embeddings.vector_index_building": ("build_index",),
    "weights.book": ("load_weights_into_gpt",),
    "embeddings.word2vec": ("train_word2vec",),
    "embeddings.word_vectors": ("WordVectors",),
}
# Names of the book that gptrs has not, and what to take in their place.
_OF_THE_BOOK = {
    "SimpleTokenizerV1 SimpleTokenizerV2 BPETokenizerSimple": (
        "gptrs.get_tokenizer and gptrs.train_tokenizer give a gptrs.Tokenizer"
    ),
    "SelfAttention_v1 SelfAttention_v2 CausalAttention MultiHeadAttentionWrapper "
    "PyTorchMultiHeadAttention": "they lead to gptrs.MultiHeadAttention; the book's own stay yours",
    "FeedForwardFast TransformerBlockFast GPTModelFast": (
        "gptrs.GPTModel has those kernels under the book's plain names"
    ),
    "generate_text_simple_cached generate_text_simple_stream": (
        "gptrs.generate_text_simple keeps a cache as it is, and gptrs.Generator streams"
    ),
    "download_and_load_gpt2 load_gpt2_params_from_tf_ckpt": (
        "gptrs.GPTModel.from_pretrained reads GPT-2; of the book's own, "
        "gptrs.load_weights_into_gpt takes the result"
    ),
    "assign softmax_with_temperature print_sampled_tokens find_highest_gradient plot_values": (
        "the book's own works beside gptrs.GPTModel"
    ),
    "train_model": (
        "the book's own works with gptrs.GPTModel; gptrs.train warms up, anneals and clips too"
    ),
    "download_and_unzip_spam_data create_balanced_dataset random_split SpamDataset "
    "calc_accuracy_loader train_classifier_simple classify_review": (
        "the book's own works with gptrs.GPTModel; gptrs.Classifier does all of chapter 6"
    ),
    "download_and_load_file custom_collate_draft_1 custom_collate_draft_2 check_if_running "
    "query_model generate_model_scores download_file NeuralNetwork ToyDataset compute_accuracy": (
        "the book's own stays yours; it needs nothing of gptrs"
    ),
    "LoRALayer LinearWithLoRA replace_linear_with_lora": (
        "the book's own works with gptrs.GPTModel; gptrs.add_lora(model, rank, alpha * rank, "
        "targets='all') puts such layers in the same places"
    ),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("gptrs")
    if name not in _MODULE_OF:
        for names, instead in _OF_THE_BOOK.items():
            if name in names.split():
                # Of an AttributeError, `from gptrs import name` would not show the message.
                raise ImportError(f"gptrs has no {name}: {instead}", name="gptrs", path=__file__)
        raise AttributeError(f"module 'gptrs' has no attribute {name!r}")
    value = getattr(import_module(f"gptrs.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
