"""The machine that a bundle runs on."""
