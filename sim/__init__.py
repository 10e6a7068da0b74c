"""The simulator: predicts the speedup of speculative decoding without a GPU."""
