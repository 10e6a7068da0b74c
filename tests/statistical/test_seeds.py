"""Neighbouring seeds give independent texts: a draft may not share noise with the next seed's verification.

False-alarm rate 1e-9. With the draft seeded by `seed + 1` the evidence was ln E = 54.
"""

import numpy as np

from analysis.losslessness.evidence import log_e_value
from analysis.losslessness.tables import Table
from real import optimized_speculative
from real.draft_models import ModelDraft
from real.draft_sources import OwnCache
from real.llama_decoder import LlamaDecoder
from tests.statistical.test_full_loop import PROMPT, SETTINGS, VOCAB, laws, target_and_draft


def test_texts_of_neighbouring_seeds_are_independent() -> None:
    target, other = target_and_draft(layers=1)
    decoder, draft = (
        LlamaDecoder.from_transformers(target),
        ModelDraft(OwnCache(LlamaDecoder.from_transformers(other)), SETTINGS, "d"),
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
