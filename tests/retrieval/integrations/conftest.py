collect_ignore = ["frameworks"]  # each in its environment: `test_frameworks.py` runs them
