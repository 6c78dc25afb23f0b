"""Rewrites of the graph, one a file; :mod:`.base` says what a pass is."""
