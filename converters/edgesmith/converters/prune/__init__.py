"""Channels out of a trained network, and 2:4 sparse weights."""
