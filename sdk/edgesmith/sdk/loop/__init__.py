"""Frames and models joined."""
