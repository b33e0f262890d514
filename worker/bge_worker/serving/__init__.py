"""Requests to replies: validation, batching, limits. Transports are `http` and `runpod`."""
