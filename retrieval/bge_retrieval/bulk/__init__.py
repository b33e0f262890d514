"""Embed a whole corpus into a folder of Parquet files, on Ray or through an endpoint.

sources ─ parts ─▶ partition: parse ─▶ ray_pipeline or endpoint_pipeline ─▶ partition: write
manifest, folder, job: which partitions there are, and which are finished
"""
