"""Is a sampler lossless? Proof for a pure rule, statistics for a black box, and the greedy case.

Speculative decoding promises that its output has the target's own distribution. Engines have broken that promise
without noticing: noise of the draft reused on rejection, top-p on one side only, the bonus token from the wrong row.
Marginal tests of the first token see only some of these. This package has four tests, none of which needs torch:

- `exact_distance`: a rule given as pure functions, every path enumerated, joint law against the target's chain law;
- `check`: any sampler as a callable, e-values over positions, pairs, rounds, contexts and lags, total false-alarm
  rate 1e-9 at any stopping time;
- `check_tokens` and `check_acceptance`: tokens and accepted counts of a real model, whatever its vocabulary;
- `classify_divergence`: two greedy outputs that differ, a numeric tie or a bug.

`self_test` tries all of it on samplers that are wrong on purpose.
"""

from analysis.losslessness.check import Plan, check, load_callable, plan
from analysis.losslessness.designs import Design, default_designs
from analysis.losslessness.exact import (
    EXACT_TOLERANCE,
    adversarial_pairs,
    chain_law,
    exact_distance,
    output_law,
    random_chain,
)
from analysis.losslessness.greedy import Divergence, classify_divergence
from analysis.losslessness.mutants import MUTANTS, Mutant
from analysis.losslessness.power import FALSE_ALARM, POWER, TOTAL_VARIATION, detectable_tv, samples_for
from analysis.losslessness.result import CheckResult, HypothesisResult
from analysis.losslessness.rows import check_pair, check_rows, total_variation
from analysis.losslessness.rules import CORRECT, RULES, Rule, Sampler, chain_sampler
from analysis.losslessness.selftest import Row, markdown, self_test
from analysis.losslessness.vocabulary import check_acceptance, check_tokens

__all__ = [
    "CORRECT",
    "EXACT_TOLERANCE",
    "FALSE_ALARM",
    "MUTANTS",
    "POWER",
    "RULES",
    "TOTAL_VARIATION",
    "CheckResult",
    "Design",
    "Divergence",
    "HypothesisResult",
    "Mutant",
    "Plan",
    "Row",
    "Rule",
    "Sampler",
    "adversarial_pairs",
    "chain_law",
    "chain_sampler",
    "check",
    "check_acceptance",
    "check_pair",
    "check_rows",
    "check_tokens",
    "classify_divergence",
    "default_designs",
    "detectable_tv",
    "exact_distance",
    "load_callable",
    "markdown",
    "output_law",
    "plan",
    "random_chain",
    "samples_for",
    "self_test",
    "total_variation",
]
