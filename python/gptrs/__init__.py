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

    from gptrs.building import build_store as build_store
    from gptrs.building import merge_stores as merge_stores
    from gptrs.checkpoint import load_checkpoint as load_checkpoint
    from gptrs.checkpoint import save_checkpoint as save_checkpoint
    from gptrs.classifier import Classifier as Classifier
    from gptrs.completions import Completion as Completion
    from gptrs.completions import TokenLogprobs as TokenLogprobs
    from gptrs.config import GPT_CONFIG_124M as GPT_CONFIG_124M
    from gptrs.config import PRESETS as PRESETS
    from gptrs.config import GPTConfig as GPTConfig
    from gptrs.config import get_config as get_config
    from gptrs.data import GPTDatasetV1 as GPTDatasetV1
    from gptrs.data import create_dataloader_v1 as create_dataloader_v1
    from gptrs.embeddings import Embedder as Embedder
    from gptrs.embeddings import embed as embed
    from gptrs.embeddings import embed_iter as embed_iter
    from gptrs.errors import GptrsError as GptrsError
    from gptrs.generation import generate as generate
    from gptrs.generation import generate_text_simple as generate_text_simple
    from gptrs.generation import text_to_token_ids as text_to_token_ids
    from gptrs.generation import token_ids_to_text as token_ids_to_text
    from gptrs.generator import Generator as Generator
    from gptrs.instructions import format_input as format_input
    from gptrs.instructions import format_prompt as format_prompt
    from gptrs.instructions import read_instructions as read_instructions
    from gptrs.instructions_data import instruction_data as instruction_data
    from gptrs.instructions_dataset import InstructionDataset as InstructionDataset
    from gptrs.instructions_dataset import custom_collate_fn as custom_collate_fn
    from gptrs.kv_cache import KVCache as KVCache
    from gptrs.layers import GELU as GELU
    from gptrs.layers import FeedForward as FeedForward
    from gptrs.layers import LayerNorm as LayerNorm
    from gptrs.layers import MultiHeadAttention as MultiHeadAttention
    from gptrs.layers import TransformerBlock as TransformerBlock
    from gptrs.loader import WindowLoader as WindowLoader
    from gptrs.lora import add_lora as add_lora
    from gptrs.lora import load_lora as load_lora
    from gptrs.lora import lora_state_dict as lora_state_dict
    from gptrs.lora import merge_lora as merge_lora
    from gptrs.lora import merged_copy as merged_copy
    from gptrs.lora import save_lora as save_lora
    from gptrs.model import GPTModel as GPTModel
    from gptrs.passages import Passage as Passage
    from gptrs.passages import read_passages as read_passages
    from gptrs.pretrained import from_hub as from_hub
    from gptrs.sampling import Sampler as Sampler
    from gptrs.sampling_config import SamplingConfig as SamplingConfig
    from gptrs.scoring import Score as Score
    from gptrs.store import TokenStore as TokenStore
    from gptrs.store import convert_store as convert_store
    from gptrs.stream_decoder import StreamDecoder as StreamDecoder
    from gptrs.token_vectors import fold_projection as fold_projection
    from gptrs.token_vectors import load_token_vectors as load_token_vectors
    from gptrs.tokenizer import Tokenizer as Tokenizer
    from gptrs.tokenizer import get_tokenizer as get_tokenizer
    from gptrs.tokenizer_training import train_tokenizer as train_tokenizer
    from gptrs.trainer import TrainingResult as TrainingResult
    from gptrs.trainer import train as train
    from gptrs.training import calc_loss_batch as calc_loss_batch
    from gptrs.training import calc_loss_loader as calc_loss_loader
    from gptrs.training import evaluate_model as evaluate_model
    from gptrs.training import generate_and_print_sample as generate_and_print_sample
    from gptrs.training import plot_losses as plot_losses
    from gptrs.training import train_model_simple as train_model_simple
    from gptrs.training_callbacks import Callback as Callback
    from gptrs.training_config import TrainingConfig as TrainingConfig
    from gptrs.transformers_sampling import transformers_sampler as transformers_sampler
    from gptrs.vector_index import VectorIndex as VectorIndex
    from gptrs.vector_index_building import build_index as build_index
    from gptrs.weights import load_weights_into_gpt as load_weights_into_gpt
    from gptrs.word2vec import train_word2vec as train_word2vec
    from gptrs.word_vectors import WordVectors as WordVectors

_EXPORTS = {
    "building": ("build_store", "merge_stores"),
    "checkpoint": ("load_checkpoint", "save_checkpoint"),
    "config": ("GPT_CONFIG_124M", "PRESETS", "GPTConfig", "get_config"),
    "data": ("GPTDatasetV1", "create_dataloader_v1"),
    "classifier": ("Classifier",),
    "embeddings": ("Embedder", "embed", "embed_iter"),
    "errors": ("GptrsError",),
    "generation": ("generate", "generate_text_simple", "text_to_token_ids", "token_ids_to_text"),
    "completions": ("Completion", "TokenLogprobs"),
    "generator": ("Generator",),
    "scoring": ("Score",),
    "kv_cache": ("KVCache",),
    "layers": ("GELU", "FeedForward", "LayerNorm", "MultiHeadAttention", "TransformerBlock"),
    "loader": ("WindowLoader",),
    "instructions": ("format_input", "format_prompt", "read_instructions"),
    "instructions_data": ("instruction_data",),
    "instructions_dataset": ("InstructionDataset", "custom_collate_fn"),
    "lora": (
        "add_lora",
        "load_lora",
        "lora_state_dict",
        "merge_lora",
        "merged_copy",
        "save_lora",
    ),
    "model": ("GPTModel",),
    "passages": ("Passage", "read_passages"),
    "pretrained": ("from_hub",),
    "sampling": ("Sampler",),
    "sampling_config": ("SamplingConfig",),
    "store": ("TokenStore", "convert_store"),
    "stream_decoder": ("StreamDecoder",),
    "token_vectors": ("fold_projection", "load_token_vectors"),
    "tokenizer": ("Tokenizer", "get_tokenizer"),
    "tokenizer_training": ("train_tokenizer",),
    "trainer": ("TrainingResult", "train"),
    "training": (
        "calc_loss_batch",
        "calc_loss_loader",
        "evaluate_model",
        "generate_and_print_sample",
        "plot_losses",
        "train_model_simple",
    ),
    "training_callbacks": ("Callback",),
    "training_config": ("TrainingConfig",),
    "transformers_sampling": ("transformers_sampler",),
    "vector_index": ("VectorIndex",),
    "vector_index_building": ("build_index",),
    "weights": ("load_weights_into_gpt",),
    "word2vec": ("train_word2vec",),
    "word_vectors": ("WordVectors",),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("gptrs")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'gptrs' has no attribute {name!r}")
    value = getattr(import_module(f"gptrs.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
