"""Wrappers: behaviour that is composed around an environment, each with its vector twin."""
