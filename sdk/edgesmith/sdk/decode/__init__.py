"""Canonical tensors to results."""
