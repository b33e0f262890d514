"""The commands `bge index`, `search`, `migrate` and `evaluate`.

`bge_client` loads them by the entry points in `pyproject.toml`.
"""
