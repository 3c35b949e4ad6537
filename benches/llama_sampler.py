"""llama.cpp's sampler through `llama_cpp`, if that is installed: one row at a time, as it works."""

import ctypes

import numpy as np

try:
    import llama_cpp
except ImportError:
    llama_cpp = None

MIN_KEEP, SEED, LAST_N = 1, 0, 100


class LlamaSamplerOfOneRow:
    """A chain of llama.cpp's samplers over rows of logits.

    Args:
        settings: named as those of SamplingConfig.
    """

    def __init__(self, settings, vocab_size):
        library = llama_cpp
        self.chain = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
        make = {
            "repetition_penalty": lambda penalty: library.llama_sampler_init_penalties(
                vocab_size, LAST_N, penalty, 0, 0
            ),
            "top_k": library.llama_sampler_init_top_k,
            "typical_p": lambda p: library.llama_sampler_init_typical(p, MIN_KEEP),
            "top_p": lambda p: library.llama_sampler_init_top_p(p, MIN_KEEP),
            "min_p": lambda p: library.llama_sampler_init_min_p(p, MIN_KEEP),
        }
        links = [new(settings[name]) for name, new in make.items() if name in settings]
        temperature = settings.get("temperature", 1.0)
        if temperature == 0:
            links.append(library.llama_sampler_init_greedy())
        else:
            links.append(library.llama_sampler_init_temp(temperature))
            links.append(library.llama_sampler_init_dist(SEED))
        for link in links:
            library.llama_sampler_chain_add(self.chain, link)
        self.ids = np.arange(vocab_size, dtype=np.int32)
        fields = [("id", np.int32), ("logit", np.float32), ("p", np.float32)]
        self.candidates = np.zeros(vocab_size, dtype=fields)

    def __call__(self, row):
        """The token drawn for one row, float32 [V]."""
        self.candidates["id"], self.candidates["logit"] = self.ids, row
        address = self.candidates.ctypes.data
        data = ctypes.cast(address, ctypes.POINTER(llama_cpp.llama_token_data))
        array = llama_cpp.llama_token_data_array(data, len(row), -1, False)
        llama_cpp.llama_sampler_apply(self.chain, ctypes.byref(array))
        token = array.data[array.selected].id
        llama_cpp.llama_sampler_accept(self.chain, token)
        return token


LlamaSampler = None if llama_cpp is None else LlamaSamplerOfOneRow
"""None where there is no llama_cpp."""
