"""Figures of the papers and of this lab, one script each."""
