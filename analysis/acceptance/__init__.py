"""Acceptance in every unit that engines and papers use."""
