"""Embed a whole corpus into a folder of Parquet files, on Ray or through an endpoint."""
