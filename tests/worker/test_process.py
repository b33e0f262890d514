"""The environment of the libraries, prepared before they are imported."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import os
from bge_worker.process import prepare_process
prepare_process()
print(os.environ["GOMP_SPINCOUNT"], os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"])
"""


def test_prepare_process_keeps_variables_of_the_operator() -> None:
    env = os.environ | {"GOMP_SPINCOUNT": "7"}
    env.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY", None)
    output = subprocess.check_output([sys.executable, "-c", PROGRAM], env=env, text=True)
    assert output.split() == ["7", "512"]
