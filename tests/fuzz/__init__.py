"""Arbitrary and mutated bytes for everything that reads files of strangers.

`tests/test_fuzz.py` runs a few hundred of each kind; `python tests/fuzz MINUTES` goes on for as long as it is
reported. Each kind runs in a child process, which may crash without taking the run down.
"""
