"""Trained models in, one file for each kind of source; :mod:`.load` has the table."""

from edgesmith.converters.sources.base import Loaded
from edgesmith.converters.sources.load import load_source

__all__ = ["Loaded", "load_source"]
