"""The command line: one small file a command; none of them loads torch, numpy or rasterio before it runs."""
