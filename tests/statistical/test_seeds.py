"""Neighbouring seeds give independent texts: a draft may not share noise with the next seed's verification.

False-alarm rate 1e-9. With the draft seeded by `seed + 1` the evidence was ln E = 54.
"""

import numpy as np
import torch

from analysis.losslessness.evidence import log_e_value
from analysis.losslessness.tables import Table
from real import optimized_speculative
from real.draft_models import ModelDraft
from real.llama_decoder import LlamaDecoder
from tests.real.conftest import tiny_model
from tests.statistical.test_full_loop import PROMPT, SETTINGS, VOCAB, laws


def test_texts_of_neighbouring_seeds_are_independent() -> None:
    target, other = (tiny_model(vocab=VOCAB, layers=1, spread=0.25) for _ in range(2))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * 0.05)
    decoder, draft = (
        LlamaDecoder.from_transformers(target),
        ModelDraft(LlamaDecoder.from_transformers(other), SETTINGS, "d"),
    )
    first = np.array(
        [
            optimized_speculative.generate(
                decoder, draft, PROMPT, gamma=1, max_new_tokens=2, settings=SETTINGS, seed=seed
            ).token_ids[0]
            for seed in range(4000)
        ]
    )
    pairs = np.zeros((VOCAB, VOCAB), dtype=np.int64)
    np.add.at(pairs, (first[:-1], first[1:]), 1)
    law = np.tile(laws(target, [0])[0], (VOCAB, 1))
    assert log_e_value(Table("first tokens of neighbouring seeds", law, pairs)) < np.log(1e9)
