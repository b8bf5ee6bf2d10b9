"""Signals at play: a model of :mod:`encoders.signals` as an agent, its file, and a report of what models find."""
