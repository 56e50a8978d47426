"""The one place that holds Espalier's version."""

__version__ = "0.1.0"
