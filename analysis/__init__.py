"""Fits, predictions, comparisons and statistical tests; reads the round table, whoever wrote it."""
