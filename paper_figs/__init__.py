"""Figures of the papers and of this lab, one script each."""

from pathlib import Path

PUBLISHED = Path(__file__).parent / "data" / "published_speedups.csv"
"""measured speedups of papers and repositories; data/README.md says where each is from"""
