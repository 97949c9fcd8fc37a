"""Selective Reflection-Tuning as Dagster assets. `read()` gives any table or view as a pandas DataFrame."""

__version__ = "0.1.0"
