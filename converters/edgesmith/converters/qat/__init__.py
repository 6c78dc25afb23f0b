"""A network learns under the rounding that INT8 will do."""
