"""Which number format each layer gets, and the repairs that keep INT8 accurate."""
