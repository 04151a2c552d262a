"""Experiments and speed figures, each one command, results as JSON."""
