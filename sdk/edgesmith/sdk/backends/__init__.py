"""What runs a graph: one file a library, one table that chooses."""
