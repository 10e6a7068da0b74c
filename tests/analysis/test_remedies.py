from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis.diagnose.remedies import (
    Facts,
    acceptance_remedy,
    break_even,
    draft_remedy,
    faster,
    not_loaded_remedy,
    overhead_remedy,
    verify_remedy,
)
from analysis.diagnose.speedup_loss import RoundCosts
from sim.theory import speedup

ONE = np.ones(1)


def costs(draft: float, verify: float = 1.1, tokens: float = 2.0) -> RoundCosts:
    return RoundCosts(tokens * ONE, 5 * ONE, draft * ONE, verify * ONE, 0.0 * ONE, ONE, 0.0 * ONE)


def facts(**changed: object) -> Facts:
    known = {"rounds": 100, "gamma": 4.0, "block_efficiency": 2.0, "drafted": 400, "accepted": 100, "alpha": 0.5}
    return Facts(**known | {"alpha_ci": [0.4, 0.6], "idle": 0.0, "batch": 1.0} | changed)  # type: ignore[arg-type]  # of any test


def test_acceptance_breaks_even_where_the_closed_form_s_speedup_is_one() -> None:
    alpha = break_even(costs(0.4), 4)
    assert alpha is not None
    assert speedup(alpha, 4, 0.1, 1.1) == pytest.approx(1)
    assert break_even(costs(4.0), 4) is None
    assert break_even(costs(0.0, 0.9), 4) == 0
    assert "gamma 4 pays at no acceptance rate" in acceptance_remedy(costs(4.0), facts())


def test_a_cost_halved_is_worth_what_the_ratio_of_times_says() -> None:
    assert faster(costs(1.1), draft_seconds=0.55 * ONE) == "+33%"


def test_a_draft_is_not_loaded_where_it_surely_knows_nothing() -> None:
    assert not facts().not_loaded
    assert not facts(alpha=0.06, alpha_ci=[0.04, 0.08]).not_loaded
    assert facts(alpha=0.02, alpha_ci=[0.01, 0.04]).not_loaded
    assert facts(accepted=0, alpha=0.0, alpha_ci=[0.0, 0.09]).not_loaded
    assert facts(accepted=0, alpha=0.0, alpha_ci=[0.0, 0.17]).not_loaded  # 20 rejected tokens
    assert not facts(accepted=0, alpha=0.0, alpha_ci=[0.0, 0.2]).not_loaded
    assert facts(drafted=0, alpha=None, alpha_ci=None).not_loaded
    assert not facts(rounds=5, drafted=0, alpha=None, alpha_ci=None).not_loaded
    # a log that prints no more than a mean length
    only_mean = {"rounds": None, "drafted": None, "accepted": None, "alpha": None, "alpha_ci": None}
    assert facts(**only_mean, block_efficiency=1.0).not_loaded
    assert not facts(**only_mean, block_efficiency=1.01).not_loaded


def test_without_plain_steps_nothing_is_said_of_them() -> None:
    unknown = replace(costs(0.4), plain=False)
    for remedy in (draft_remedy, overhead_remedy, verify_remedy):
        assert "plain" in remedy(costs(0.4), facts()) or remedy is verify_remedy
        assert "plain" not in remedy(unknown, facts())
    assert "0.36 verifications" in draft_remedy(unknown, facts())


def test_decoding_without_a_broken_draft_is_as_fast_as_a_plain_step() -> None:
    broken = facts(accepted=0, alpha=0.0, alpha_ci=[0.0, 0.01], block_efficiency=1.0)
    assert "until then decode without it (+50%)" in not_loaded_remedy(costs(0.4, tokens=1.0), broken)
