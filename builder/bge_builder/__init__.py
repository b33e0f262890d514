"""Runs at image build and on a developer's machine, never in a worker."""
