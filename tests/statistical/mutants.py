"""The mutants live in `analysis.losslessness.mutants`: an installed `check-sampler --self-test` needs them too."""

from analysis.losslessness.mutants import MUTANTS, Mutant

__all__ = ["MUTANTS", "Mutant"]
