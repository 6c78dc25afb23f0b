"""A network learns from another one's answers."""
