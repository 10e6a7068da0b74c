"""Two greedy outputs that differ: did arithmetic break a tie, or is there a bug?

Greedy decoding is deterministic on paper. In floating point a forward over gamma+1 tokens sums in another order than a
forward over one, so logits differ in their last digits, and where two tokens are that close the argmax may flip; from
there on the texts differ for good. So only the first divergence says anything, and it is a tie exactly when the two
tokens' logits are closer than that rounding explains.

Two roundings move a logit. Activations are stored in the dtype once or twice in every layer, and such errors add up
like a random walk: u sqrt(2 layers) of the logits' size, u the unit roundoff. And every product of `width` terms is
summed in float32 at best: u32 sqrt(width). `SLACK` times their sum is the outer limit of what we excuse; where the
logits of both forwards were kept, their measured difference takes the sum's place, if it is smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from analysis.losslessness.rows import Floats

UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SLACK = 2.0


@dataclass(frozen=True)
class Divergence:
    """The first place where two greedy outputs differ."""

    kind: Literal["identical", "numeric tie", "bug"]
    position: int | None
    """Index of the first differing token; None where there is none."""
    tokens: tuple[int | None, int | None]
    """The reference's token and the other's; None where an output had already ended."""
    logit_gap: float | None
    """How far apart the reference's logits of the two tokens are."""
    explained_gap: float | None
    """The largest gap that dtype and batch shape explain."""
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


def first_divergence(reference: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first token that differs, or where the shorter one ends; None where the two are the same."""
    for i, (a, b) in enumerate(zip(reference, other, strict=False)):
        if a != b:
            return i
    return None if len(reference) == len(other) else min(len(reference), len(other))


def rounding(logits: Floats, dtype: str, width: int, layers: int) -> float:
    """How far rounding may move one logit: SLACK max |logit| (u sqrt(2 layers) + min(u, u32) sqrt(width)).

    Raises:
        ValueError: the dtype is unknown.
    """
    if dtype not in UNIT_ROUNDOFF:
        raise ValueError(f"dtype must be one of {sorted(UNIT_ROUNDOFF)}, got {dtype!r}")
    stored = UNIT_ROUNDOFF[dtype]
    summed = min(stored, UNIT_ROUNDOFF["float32"])
    size = np.abs(logits[np.isfinite(logits)]).max()
    return float(SLACK * size * (stored * np.sqrt(2 * layers) + summed * np.sqrt(width)))


def classify_divergence(
    reference: Sequence[int],
    other: Sequence[int],
    reference_logits: Floats | None,
    other_logits: Floats | None = None,
    dtype: str = "float32",
    width: int = 576,
    layers: int = 30,
) -> Divergence:
    """Classify the first divergence of two greedy outputs.

    Args:
        reference: the target's own greedy tokens.
        other: the tokens under test, same prompt.
        reference_logits: [vocab] the target's logits at the first divergence, from single-token forwards; or None.
        other_logits: [vocab] the same from a forward with the other's batch shape, if it was kept. Then the difference
            of the two is the noise that was really there, and must itself be within what the dtype explains.
        dtype: that the forwards were computed in.
        width: hidden size of the model; the default is the embedded target's, as is that of `layers`.
        layers: of the model.

    Raises:
        ValueError: the outputs differ and there are no logits, or the dtype is unknown.
    """
    position = first_divergence(reference, other)
    if position is None:
        return Divergence("identical", None, (None, None), None, None, f"all {len(reference)} tokens agree")
    tokens = tuple(ids[position] if position < len(ids) else None for ids in (reference, other))
    a, b = tokens
    if a is None or b is None:
        short, ended = ("reference", other) if a is None else ("other output", reference)
        verdict = f"bug: the {short} ends at {position} where the {len(ended)}-token one goes on"
        return Divergence("bug", position, (a, b), None, None, verdict)
    if reference_logits is None:
        raise ValueError(f"the outputs differ at {position}; give the target's logits there to classify it")
    gap = float(reference_logits[a] - reference_logits[b])
    each = rounding(reference_logits, dtype, width, layers)
    if other_logits is not None:
        noise = float(np.abs(reference_logits - other_logits).max())
        if noise > 2 * each:
            verdict = (
                f"bug at {position}: the two forwards' logits differ by {noise:.3g}, {dtype} explains {2 * each:.3g}; "
                "they did not see the same context"
            )
            return Divergence("bug", position, (a, b), gap, 2 * each, verdict)
        each = min(each, SLACK * noise)
    explained = 2 * each
    if gap < 0:
        verdict = f"bug at {position}: the reference took {a}, but its own logits prefer {b} by {-gap:.3g}"
        return Divergence("bug", position, (a, b), gap, explained, verdict)
    if gap <= explained:
        verdict = (
            f"numeric tie at {position}: logits {gap:.3g} apart, {dtype} and the batch shape explain {explained:.3g}"
        )
        return Divergence("numeric tie", position, (a, b), gap, explained, verdict)
    verdict = f"bug at {position}: logits {gap:.3g} apart, {dtype} and the batch shape explain only {explained:.3g}"
    return Divergence("bug", position, (a, b), gap, explained, verdict)
