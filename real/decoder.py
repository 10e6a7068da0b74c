"""One forward pass behind one protocol, so that the loop and the drafts never look inside a model.

`TransformersDecoder` runs any causal LM of transformers. `LlamaDecoder` (its own module) runs Llama-shaped models
several times faster on a CPU.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Tensor

from real.cache import KVCache
from real.tensor_parallel import same_on_all_ranks
from real.tree_attention import Tail, Window, window


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

    def new_cache(self, capacity: int, batch: int = 1, feature_layers: tuple[int, ...] = ()) -> KVCache:
        """An empty cache for `capacity` tokens a row; `feature_layers` are kept beside it (see `KVCache`)."""

    def forward(
        self, token_ids: Tensor, cache: KVCache, logits_to_keep: int | None = None, tail: Tail | None = None
    ) -> Tensor:
        """Append tokens to every row of the cache and score them.

        Args:
            token_ids: [batch, n] int64, written behind each row's own length. Where rows have fewer new tokens, pad
                them at the end with any token, and roll the cache back to the true lengths afterwards.
            cache: made by `new_cache`; its lengths grow by n.
            logits_to_keep: score only the last so many tokens; None for all n.
            tail: what the tokens see of the last slots, for token trees; None for a chain.

        Returns:
            [batch, logits_to_keep or n, vocab] logits; row i is the distribution of the token after token i.
        """

    def first_layers(self, count: int) -> Decoder:
        """The same model cut after its first `count` layers, with its own final norm and head, sharing weights."""


class TransformersDecoder:
    """Any causal LM of transformers with full attention in every layer; the outside reference for speed and results.

    In float64 a mixture of experts runs expert by expert, since torch's grouped product has no such kernel.

    Raises:
        ValueError: a layer keeps a sliding window or a recurrent state, which cannot be rolled back.
    """

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise ValueError(
                f"{type(model).__name__} has {sorted(kinds - {'full_attention'})} layers, whose state cannot be rolled "
                "back to the accepted tokens; choose a model with full attention in every layer"
            )
        self.model = model
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self.layers = int(config.num_hidden_layers)
        self.width = int(config.hidden_size)
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        per_layer = getattr(config, "layer_types", None)  # where it is given, it alone says which layers have a window
        self.attended: int | None = (None if per_layer else getattr(config, "sliding_window", None)) or None
        if self.dtype == torch.float64 and getattr(config, "_experts_implementation", None) == "grouped_mm":
            model.set_experts_implementation("eager")

    def new_cache(self, capacity: int, batch: int = 1, feature_layers: tuple[int, ...] = ()) -> KVCache:
        """See `Decoder.new_cache`.

        Raises:
            ValueError: the model has a sliding window that is shorter, or no such layers.
        """
        if self.attended is not None and capacity > self.attended:
            raise ValueError(
                f"{capacity} tokens asked for, beyond the sliding window of {self.attended} of "
                f"{type(self.model).__name__}, which this forward has not; ask for shorter prompts or fewer new tokens"
            )
        check_feature_layers(feature_layers, self.layers)
        return KVCache(self.layers, capacity, batch, feature_layers)

    @torch.inference_mode()
    def forward(
        self, token_ids: Tensor, cache: KVCache, logits_to_keep: int | None = None, tail: Tail | None = None
    ) -> Tensor:
        """See `Decoder.forward`."""
        batch, new = token_ids.shape
        cache.reserve(new)
        place = window(cache.lengths, new, tail, self.device)
        positions = place.positions
        if positions is None:
            positions = torch.arange(place.end - new, place.end, device=self.device).expand(batch, -1)
        mask = place.mask
        if mask is None:
            mask = torch.ones(1, place.end, dtype=torch.bool, device=self.device)
        mask = mask.expand(batch, 1, new, place.end)
        if self.model.config._attn_implementation == "eager":  # which adds its mask instead of selecting by it
            mask = torch.zeros(mask.shape, dtype=self.dtype, device=self.device).masked_fill(~mask, float("-inf"))
        last: list[Tensor] = []
        if cache.feature_layers:
            hook = self.model.get_decoder().norm.register_forward_pre_hook(lambda _, inputs: last.append(inputs[0]))
        output = self.model(
            input_ids=token_ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=_cache_for_transformers(cache, place),
            use_cache=True,
            logits_to_keep=logits_to_keep or 0,
            output_hidden_states=bool(cache.feature_layers),
        )
        if cache.feature_layers:
            hook.remove()
        for tap, layer in enumerate(cache.feature_layers):  # transformers norms the last layer's hidden state
            cache.write_features(tap, last[0] if layer == self.layers else output.hidden_states[layer], place)
        cache.advance(new)
        return same_on_all_ranks(output.logits)

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


def _cache_for_transformers(cache: KVCache, place: Window) -> Any:
    """A transformers Cache that reads and writes ours, for one forward."""
    from transformers import Cache

    class RowsCache(Cache):  # type: ignore[misc]  # transformers is untyped
        def __init__(self) -> None:
            super().__init__(layers=[])

        def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            return cache.write(layer_idx, keys, values, place)

        def get_seq_length(self, layer_idx: int = 0) -> int:
            return max(cache.lengths)

    return RowsCache()


def check_feature_layers(feature_layers: tuple[int, ...], layers: int) -> None:
    """Refuse layers that the model does not have.

    Raises:
        ValueError: naming the range.
    """
    if not all(1 <= layer <= layers for layer in feature_layers):
        raise ValueError(f"feature layers must be in 1 to {layers}, got {feature_layers}")


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
