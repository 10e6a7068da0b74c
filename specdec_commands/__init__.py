"""The commands of `specdec`, a file per group; `specdec_lab` puts them together."""
