"""Endpoints on RunPod: created or updated from `deploy.toml`, watched, and deleted.

settings   deploy.toml: the fields of both types
plan       settings compared with the endpoint of that id or name, if it exists
api        RunPod's REST API, version 2, as documented in 2026-08
probes     requests that start a worker, and show that one answers
wait       the states of workers until one is ready, or has failed
command    what `make deploy` and `make undeploy` print and return
"""
