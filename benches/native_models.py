"""The models that `bench_native.py` runs, and their files in each peer's own format.

    GPTModel ─► hf/             gptrs, transformers and the book's code read it
                ├► f32.gguf, bf16.gguf, q8_0.gguf, q4_0.gguf      llama.cpp
                └► ct2-float32/, ct2-int8/                        CTranslate2

The first is written here, with gptrs; the others by this file run as a program where their
libraries are, which needs neither gptrs nor torch:

    native_models.py llama.cpp|ctranslate2 FOLDER
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gptrs

HF = "hf"
GGUF_TYPES = {"f32": "ALL_F32", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
CT2_TYPES = {"float32": None, "int8": "int8"}
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Shape:
    """A GPT-2 with biases everywhere and an output layer of its own."""

    name: str
    layers: int
    width: int
    heads: int
    vocab_size: int = 50_257
    context_length: int = 1024

    @property
    def read_weights(self) -> int:
        """Weights that one token reads, without norms and biases."""
        return (12 * self.layers * self.width + self.vocab_size) * self.width

    @property
    def all_weights(self) -> int:
        """The same and both embeddings: what lies in memory."""
        return self.read_weights + (self.vocab_size + self.context_length) * self.width


GPT2 = Shape("124M", layers=12, width=768, heads=12)
SMALL = Shape("4 layers, 256 wide", layers=4, width=256, heads=4)
TINY = Shape("4 layers, 256 wide, vocabulary 512", layers=4, width=256, heads=4, vocab_size=512)


def make_model(shape: Shape) -> "gptrs.GPTModel":
    """Random weights, the same every time."""
    import torch

    import gptrs

    config = gptrs.GPTConfig(
        vocab_size=shape.vocab_size,
        context_length=shape.context_length,
        emb_dim=shape.width,
        n_heads=shape.heads,
        n_layers=shape.layers,
        qkv_bias=True,
    )
    torch.manual_seed(0)
    return gptrs.GPTModel(config)


def write_model(shape: Shape, folder: Path) -> None:
    """The model as a folder that transformers reads."""
    make_model(shape).save_pretrained(folder / HF, format="hf")


def write_gguf(folder: Path) -> None:
    """llama.cpp's files: two written from the weights, two that it quantises itself."""
    import ctypes

    import gguf
    import llama_cpp

    types = {
        "f32": gguf.GGMLQuantizationType.F32,
        "bf16": gguf.GGMLQuantizationType.BF16,
    }
    for name, kind in types.items():
        _write_gguf(folder, folder / f"{name}.gguf", kind, gguf.LlamaFileType[GGUF_TYPES[name]])
    llama_cpp.llama_backend_init()
    for name in GGUF_TYPES.keys() - types:
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = gguf.LlamaFileType[GGUF_TYPES[name]]
        source, target = (bytes(folder / f"{file}.gguf") for file in ("f32", name))
        if llama_cpp.llama_model_quantize(source, target, ctypes.byref(params)):
            raise RuntimeError(f"llama.cpp could not quantise to {name}")


def _write_gguf(folder: Path, path: Path, kind, file_type) -> None:
    import gguf

    config, tensors = _read_hf(folder)
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(LAYER_NORM_EPS)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(file_type)
    names = {
        "wte": "token_embd",
        "wpe": "position_embd",
        "ln_f": "output_norm",
        "lm_head": "output",
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    }
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        prefix, _, rest = module.partition(".")
        layer = ""
        if prefix == "h":
            number, _, module = rest.partition(".")
            layer = f"blk.{number}."
        # As llama.cpp's own converter: only matrices are anything but float32.
        own = kind if tensor.ndim == 2 and module != "wpe" else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(tensor, own)
        writer.add_tensor(f"{layer}{names[module]}.{part}", data, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_ctranslate2(folder: Path) -> None:
    """CTranslate2's folders; a token's name is its number."""
    from ctranslate2.specs import common_spec, transformer_spec

    for name, quantization in CT2_TYPES.items():
        config, tensors = _read_hf(folder)
        spec = transformer_spec.TransformerDecoderModelSpec.from_config(
            config["n_layer"],
            config["n_head"],
            pre_norm=True,
            activation=common_spec.Activation.GELUTanh,
        )

        def fill(part, prefix: str, *, names=("weight", "bias"), tensors=tensors) -> None:
            for own, theirs in zip(names, ("weight", "bias"), strict=True):
                if f"{prefix}.{theirs}" in tensors:
                    setattr(part, own, tensors[f"{prefix}.{theirs}"])

        decoder, norm = spec.decoder, ("gamma", "beta")
        decoder.scale_embeddings = False
        fill(decoder.embeddings, "wte")
        decoder.position_encodings.encodings = tensors["wpe.weight"]
        fill(decoder.layer_norm, "ln_f", names=norm)
        fill(decoder.projection, "lm_head")
        for number, layer in enumerate(decoder.layer):
            fill(layer.self_attention.layer_norm, f"h.{number}.ln_1", names=norm)
            fill(layer.self_attention.linear[0], f"h.{number}.attn.c_attn")
            fill(layer.self_attention.linear[1], f"h.{number}.attn.c_proj")
            fill(layer.ffn.layer_norm, f"h.{number}.ln_2", names=norm)
            fill(layer.ffn.linear_0, f"h.{number}.mlp.c_fc")
            fill(layer.ffn.linear_1, f"h.{number}.mlp.c_proj")
        spec.register_vocabulary([str(token) for token in range(config["vocab_size"])])
        for special in ("bos_token", "eos_token", "unk_token"):
            setattr(spec.config, special, str(config["vocab_size"] - 1))
        spec.validate()
        spec.optimize(quantization=quantization)
        (folder / f"ct2-{name}").mkdir()
        spec.save(str(folder / f"ct2-{name}"))


def _read_hf(folder: Path) -> tuple[dict, dict]:
    """config.json, and the tensors under names without a prefix, matrices [out, in]."""
    from safetensors.numpy import load_file

    config = json.loads((folder / HF / "config.json").read_text())
    tensors = {}
    for name, tensor in load_file(folder / HF / "model.safetensors").items():
        # transformers' Conv1D has [in, out].
        is_turned = ".c_" in name and tensor.ndim == 2
        tensors[name.removeprefix("transformer.")] = tensor.T.copy() if is_turned else tensor
    return config, tensors


def main() -> None:
    """Writes one library's files."""
    library, folder = sys.argv[1:]
    {"llama.cpp": write_gguf, "ctranslate2": write_ctranslate2}[library](Path(folder))


if __name__ == "__main__":
    main()
