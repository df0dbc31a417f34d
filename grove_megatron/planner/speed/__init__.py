"""Seconds of a step: machines, products, exchanges, and the whole."""
