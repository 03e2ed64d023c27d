"""The operator ``llama_decoder``: one pass of a Llama decoder on a CPU, with ``llama_decoder.cpp`` behind it.

At the few rows of a decode step a pass is bound by reading the weights. General libraries reach the memory's speed
at 1 or 2 rows at best, and inductor can express neither prefetching nor one parallel region for all layers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import build

MAX_ROWS = 16  # rows of activations: sequences times new positions
MAX_INT8_ROWS = 2
HEAD_DIM = 64

_WIDTH_MULTIPLE = 64


class Int8Matrix(NamedTuple):
    """A matrix (out, in) in 8 bits: ``values * scales[:, None]``."""

    values: Tensor  # int8 (out, in)
    scales: Tensor  # fp32 (out,)

    @classmethod
    def of(cls, matrix: Tensor) -> Int8Matrix:
        """Rounds a matrix to the nearest of 255 symmetric steps, with one scale per row."""
        matrix = matrix.detach().float()
        scales = matrix.abs().amax(1).clamp(min=1e-12) / 127
        return cls((matrix / scales[:, None]).round().to(torch.int8), scales)


Matrix = Tensor | Int8Matrix


class Weights:
    """The weights that the native decoder reads: norms and matrices of every layer, the final norm and the head.

    Args:
        layers: for each layer its attention norm, the query, key, value and output matrices, its MLP norm and the
            gate, up and down matrices; every matrix is (out, in), all fp32 or all int8.
        final_norm: (width,).
        head: (vocabulary, width).
    """

    def __init__(self, layers: Sequence[Sequence[Matrix]], final_norm: Tensor, head: Matrix) -> None:
        self._parts = [part for layer in layers for part in layer] + [final_norm, head]  # keeps the memory alive
        self.vocabulary, self.width = _tensors(head)[0].shape
        self.inner = _tensors(layers[0][6])[0].shape[0]
        self._layout = self._current_layout()

    @property
    def fit(self) -> bool:
        """Whether the decoder can read the weights now; a module's tensors may have been replaced since."""
        return (
            all(
                tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.dtype in (torch.float32, torch.int8)
                for part in self._parts
                for tensor in _tensors(part)
            )
            and self._layout == self._current_layout()
            and not (self.width % _WIDTH_MULTIPLE or self.inner % _WIDTH_MULTIPLE)
        )

    def _current_layout(self) -> list[tuple[torch.Size, torch.dtype]]:
        return [(tensor.shape, tensor.dtype) for part in self._parts for tensor in _tensors(part)]

    def addresses(self) -> Tensor:
        """Returns the current addresses of the parts, int64, in the order of the structs in ``llama_decoder.cpp``."""
        numbers: list[int] = []
        for part in self._parts:
            numbers += [tensor.data_ptr() for tensor in _tensors(part)]
            if isinstance(part, Tensor) and part.ndim == 2:
                numbers.append(0)  # no scales
        return torch.tensor(numbers, dtype=torch.int64)


def _tensors(part: Matrix) -> tuple[Tensor, ...]:
    return part if isinstance(part, Int8Matrix) else (part,)


class _LlamaDecoder(ctypes.Structure):
    """The struct ``LlamaDecoder`` of ``llama_decoder.cpp``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("layers", "final_norm", "head_values", "head_scales")),
        *((name, ctypes.c_void_p) for name in ("embeddings", "cos", "sin", "starts", "keys", "values", "logits")),
        *((name, ctypes.c_int64) for name in ("layer_count", "sequences", "count", "width", "heads", "inner")),
        *((name, ctypes.c_int64) for name in ("vocabulary", "capacity", "room", "threads")),
        ("eps", ctypes.c_double),
    )


def load(cache_dir: str | None = None) -> None:
    """Builds the library if it is missing and registers the operator ``torch.ops.tts_compile.llama_decoder``.

    The operator takes new positions through every layer, the final norm and the head, and returns logits, fp32
    (sequences, count, vocabulary). It takes

    - embeddings, fp32 (sequences, count, width); sequences * count is at most :data:`MAX_ROWS`, or
      :data:`MAX_INT8_ROWS` with int8 matrices;
    - cos and sin, fp32 (sequences, count, 64), rotary tables at the new positions;
    - positions, int64 (sequences, count), consecutive in every sequence;
    - keys and values of the cache, fp32 (layers, at least sequences, heads, capacity, 64), written at the positions;
    - addresses, those of :class:`Weights`, which must be kept alive and unmoved;
    - inner, the width of the MLP, vocabulary, the number of rows of the head, and eps, of the RMS norms.

    Raises:
        CompilationError: when the library cannot be built or loaded; see
            :func:`tts_compile.execution.native.build.load_library`.
    """
    library = build.load_library("llama_decoder", cache_dir)

    def run(
        embeddings: Tensor,
        cos: Tensor,
        sin: Tensor,
        positions: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        addresses: Tensor,
        inner: int,
        vocabulary: int,
        eps: float,
    ) -> Tensor:
        sequences, count, width = embeddings.shape
        layers, room, heads, capacity, head_dim = keys.shape
        if positions.shape != (sequences, count) or cos.shape != (sequences, count, head_dim):
            raise ValueError(f"positions {tuple(positions.shape)} do not fit {sequences} sequences of {count}")
        starts = positions[:, 0].contiguous()
        first, last = (int(start) for start in starts.aminmax())
        if head_dim != HEAD_DIM or sequences > room or not 0 <= first <= last <= capacity - count:
            raise ValueError(
                f"no room for {count} positions of {sequences} sequences from {starts.tolist()} "
                f"in a cache {tuple(keys.shape)}"
            )
        if heads * head_dim != width:
            raise ValueError(f"{heads} heads of {head_dim} do not make up a width of {width}")
        if any(tensor.dtype != torch.float32 for tensor in (embeddings, cos, sin, keys, values)):
            raise ValueError("the native decoder reads and writes float32 only")
        if not (keys.is_contiguous() and values.is_contiguous()):
            raise ValueError("the cache must be contiguous")
        embeddings, cos, sin = (tensor.contiguous() for tensor in (embeddings, cos, sin))
        logits = embeddings.new_empty(sequences, count, vocabulary)
        final_norm, head_values, head_scales = addresses[-3:].tolist()
        arguments = _LlamaDecoder(
            *(addresses.data_ptr(), final_norm, head_values, head_scales),
            *(tensor.data_ptr() for tensor in (embeddings, cos, sin, starts, keys, values, logits)),
            *(layers, sequences, count, width, heads, inner),
            *(vocabulary, capacity, room, torch.get_num_threads()),
            eps,
        )
        if library.tts_llama_decoder(ctypes.byref(arguments)):
            raise ValueError(f"{sequences} x {count} rows are more than the native decoder is made for")
        return logits

    build.register(
        "llama_decoder(Tensor embeddings, Tensor cos, Tensor sin, Tensor positions, Tensor(a!) keys, Tensor(b!) values,"
        " *, Tensor addresses, int inner, int vocabulary, float eps) -> Tensor",
        run,
        lambda embeddings, *_, vocabulary, **__: embeddings.new_empty(*embeddings.shape[:2], vocabulary),
    )
