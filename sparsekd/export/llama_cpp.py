"""llama.cpp through its C interface: the logits at every position, which its bindings for Python do not give.

The structs are those of llama.h in the version that requirements.lock pins; their order and types are that file's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparsekd.errors import ExportError, NotExportableError
from sparsekd.export.tools import llama_library


class _ModelParams(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("devices", "tensor_buft_overrides")),
        *((name, c_int32) for name in ("n_gpu_layers", "split_mode", "load_mode", "lazy_mode", "main_gpu")),
        *((name, c_void_p) for name in ("tensor_split", "progress_callback", "user_data", "kv_overrides")),
        *((name, c_bool) for name in ("vocab_only", "check_tensors", "use_extra_bufts", "no_host", "no_alloc", "mtp")),
    )


class _ContextParams(ctypes.Structure):
    _fields_ = (
        *((name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((name, c_int32) for name in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type")),
        *((name, c_int32) for name in ("pooling_type", "attention_type", "flash_attn_type")),
        *((name, c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext", "yarn_attn", "fast", "slow")),
        *(("yarn_orig_ctx", c_uint32), ("defrag_thold", c_float)),
        *((name, c_void_p) for name in ("cb_eval", "cb_eval_user_data")),
        *((name, c_int32) for name in ("type_k", "type_v")),
        ("moe_cache_size", c_size_t),
        *((name, c_void_p) for name in ("abort_callback", "abort_callback_data")),
        *((name, c_bool) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full", "kv_unified")),
        *(("samplers", c_void_p), ("n_samplers", c_size_t), ("ctx_other", c_void_p)),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


_CPU_ONLY, _FLASH_OFF, _FLOAT32 = 0, 0, 0
_LOG = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)
_silent = _LOG(lambda level, text, data: None)
_FUNCTIONS: dict[str, tuple[Any, ...]] = {  # name: result, arguments
    "llama_backend_init": (None,),
    "llama_log_set": (None, _LOG, c_void_p),
    "llama_model_default_params": (_ModelParams,),
    "llama_context_default_params": (_ContextParams,),
    "llama_model_load_from_file": (c_void_p, c_char_p, _ModelParams),
    "llama_init_from_model": (c_void_p, c_void_p, _ContextParams),
    "llama_model_get_vocab": (c_void_p, c_void_p),
    "llama_vocab_n_tokens": (c_int32, c_void_p),
    "llama_model_n_ctx_train": (c_int32, c_void_p),
    "llama_tokenize": (c_int32, c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool),
    "llama_batch_init": (_Batch, c_int32, c_int32, c_int32),
    "llama_batch_free": (None, _Batch),
    "llama_decode": (c_int32, c_void_p, _Batch),
    "llama_get_logits_ith": (POINTER(c_float), c_void_p, c_int32),
    "llama_get_memory": (c_void_p, c_void_p),
    "llama_memory_clear": (None, c_void_p, c_bool),
    "llama_memory_seq_rm": (c_bool, c_void_p, c_int32, c_int32, c_int32),
    "llama_free": (None, c_void_p),
    "llama_model_free": (None, c_void_p),
}


@cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(str(llama_library()))
    except OSError as error:
        raise NotExportableError(f"llama.cpp does not load on this machine: {error}") from None
    for name, (result, *arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(_silent, None)
    library.llama_backend_init()
    return library


class LlamaCpp:
    """A GGUF file loaded in llama.cpp on the CPU, with a cache of `context` positions.

    `exact` keeps the key-value cache in float32 and flash attention off, so that what differs is the file. Close it, or
    use it in a `with`. Raises ExportError where llama.cpp does not load the file.
    """

    def __init__(self, file: Path, context: int, threads: int, exact: bool = True) -> None:
        self._lib = _library()
        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = _CPU_ONLY
        self._model = self._lib.llama_model_load_from_file(str(file).encode(), params)
        if not self._model:
            raise ExportError(f"llama.cpp does not load {file}; the file is damaged or its layout is not one it knows.")
        options = self._lib.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = context
        options.n_threads = options.n_threads_batch = threads
        if exact:
            options.flash_attn_type, options.type_k, options.type_v = _FLASH_OFF, _FLOAT32, _FLOAT32
        self._context = self._lib.llama_init_from_model(self._model, options)
        if not self._context:
            self._lib.llama_model_free(self._model)
            raise ExportError(f"llama.cpp has no room for {context} positions of {file}.")
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.vocabulary = int(self._lib.llama_vocab_n_tokens(self._vocab))
        self._batch = self._lib.llama_batch_init(context, 0, 1)
        self._done, self._size = 0, context

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def tokenize(self, text: str) -> list[int]:
        """The tokens of `text`, with the special ones that the model puts around it."""
        data = text.encode()
        room = len(data) + 8
        buffer = (c_int32 * room)()
        found = self._lib.llama_tokenize(self._vocab, data, len(data), buffer, room, True, True)
        return list(buffer[:found])

    def reset(self) -> None:
        """Forget what was read."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        self._done = 0

    def keep(self, count: int) -> None:
        """Forget what was read after the first `count` tokens."""
        self._lib.llama_memory_seq_rm(self._lib.llama_get_memory(self._context), 0, count, -1)
        self._done = count

    def read(self, tokens: Sequence[int], every: bool = False) -> Float[Tensor, "tokens vocab"]:
        """Go on with `tokens` after what was read, and give the logits after the last of them, or after every one.

        Raises ExportError where they do not fit the context or llama.cpp fails.
        """
        batch, count = self._batch, len(tokens)
        if self._done + count > self._size:
            raise ExportError(f"{self._done + count} tokens do not fit a context of {self._size}.")
        batch.n_tokens = count
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, self._done + place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = int(every or place == count - 1)
        if self._lib.llama_decode(self._context, batch) != 0:
            raise ExportError("llama.cpp failed to decode; the file does not fit what llama.cpp expects of its layout.")
        self._done += count
        places = range(count) if every else [count - 1]
        rows = [
            np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, place), (self.vocabulary,)).copy()
            for place in places
        ]
        return torch.from_numpy(np.stack(rows))

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` likeliest tokens after `prompt`, one after the other."""
        self.reset()
        logits, found = self.read(prompt), list[int]()
        while True:
            found.append(int(logits[-1].argmax()))
            if len(found) == count:
                return found
            logits = self.read(found[-1:])
