"""Training stages of a conversion in order, each kept on disk under the hash of what went into it."""
