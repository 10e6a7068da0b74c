"""One forward pass behind one protocol, so that the loop and the drafts never look inside a model.

`TransformersDecoder` runs any causal LM of transformers. `LlamaDecoder` (its own module) runs Llama-shaped models
several times faster on a CPU.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Tensor


class Cache(Protocol):
    """What a decoder keeps between forwards."""

    length: int

    def rollback(self, length: int) -> None:
        """Forget every token from `length` on; a cache that is already shorter stays as it is."""

    def copy(self) -> Cache:
        """The same tokens in storage of its own."""

    def view(self) -> Cache:
        """The same storage with a length of its own, for drafting with the first layers of the same model."""


class Decoder(Protocol):
    """A causal language model as a function of tokens and a cache."""

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary."""

    @property
    def layers(self) -> int:
        """Decoder layers."""

    @property
    def width(self) -> int:
        """Hidden size."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and the cache."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache for `capacity` tokens."""

    def forward(self, token_ids: Tensor, cache: Cache, logits_to_keep: int | None = None) -> Tensor:
        """Append tokens to the cache and score them.

        Args:
            token_ids: [n] int64, the tokens at positions cache.length ... cache.length + n - 1.
            cache: made by `new_cache`; its length grows by n.
            logits_to_keep: score only the last so many tokens; None for all n.

        Returns:
            [logits_to_keep or n, vocab] logits; row i is the distribution of the token after token i.
        """

    def first_layers(self, count: int) -> Decoder:
        """The same model cut after its first `count` layers, with its own final norm and head, sharing weights."""


class TransformersCache:
    """A DynamicCache of transformers with a length that can move back.

    Full-attention layers only: a sliding-window layer that has dropped old keys cannot be rolled back.
    """

    def __init__(self, layers: Any = None) -> None:
        from transformers import DynamicCache

        self.layers = DynamicCache() if layers is None else layers
        self.length = 0

    def rollback(self, length: int) -> None:
        """Crop every layer to at most `length` tokens."""
        self.length = min(self.length, length)
        for layer in self.layers.layers:
            excess = layer.get_seq_length() - self.length
            if excess > 0:
                layer.crop(-excess)

    def copy(self) -> TransformersCache:
        """The same tokens in layers of its own."""
        twin = TransformersCache(copy.deepcopy(self.layers))
        twin.length = self.length
        return twin

    def view(self) -> TransformersCache:
        """The same layers; the owner crops them back before its own next forward."""
        shared = TransformersCache(self.layers)
        shared.length = self.length
        return shared


class TransformersDecoder:
    """Any causal LM of transformers; the outside reference for speed and for correctness."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self.layers = int(model.config.num_hidden_layers)
        self.width = int(model.config.hidden_size)
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device

    def new_cache(self, capacity: int) -> TransformersCache:
        """An empty cache; it grows as needed, so `capacity` is not used."""
        return TransformersCache()

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, cache: Cache, logits_to_keep: int | None = None) -> Tensor:
        """See `Decoder.forward`."""
        assert isinstance(cache, TransformersCache)
        cache.rollback(cache.length)  # drops what a view has drafted beyond this cache's own length
        positions = torch.arange(cache.length, cache.length + len(token_ids), device=token_ids.device)
        output = self.model(
            input_ids=token_ids[None],
            position_ids=positions[None],
            past_key_values=cache.layers,
            use_cache=True,
            logits_to_keep=logits_to_keep or 0,
        )
        cache.length += len(token_ids)
        logits: Tensor = output.logits[0]
        return logits

    def first_layers(self, count: int) -> TransformersDecoder:
        """See `Decoder.first_layers`; needs a model whose layers are `model.model.layers`, as most are."""
        check_layers(count, self.layers)
        inner = getattr(self.model, "model", None)
        if inner is None or not hasattr(inner, "layers"):
            raise ValueError(
                f"early exit needs a model with .model.layers, {type(self.model).__name__} has none; use another draft"
            )
        model = _shallow_copy(self.model)
        model.model = _shallow_copy(inner)
        model.model.layers = inner.layers[:count]
        model.config = copy.deepcopy(self.model.config)
        model.config.num_hidden_layers = count
        model.model.config = model.config
        return TransformersDecoder(model)


def check_layers(count: int, layers: int) -> None:
    """Refuse an early exit that is not strictly inside the model.

    Raises:
        ValueError: naming the range.
    """
    if not 1 <= count < layers:
        raise ValueError(f"early exit must keep 1 to {layers - 1} of the target's {layers} layers, got {count}")


def _shallow_copy(module: torch.nn.Module) -> Any:
    """A module that shares parameters and submodules but whose submodules can be replaced."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
