"""Texts become packed sequences of tokens, split by document into calibration, validation and test."""
