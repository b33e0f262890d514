"""Builds a worker's models and deploys its image. Never runs in a worker."""
