"""The version, where every package may import it from."""

__version__ = "0.1.0"
