"""The command line: one module a command; none of them loads torch, numpy or rasterio before it runs."""

from rsseg_cli.cli.main import app, main

__all__ = ["app", "main"]
