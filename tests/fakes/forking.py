"""Run a program that forks in a subprocess, because pytest's process has threads."""

from __future__ import annotations

import subprocess
import sys

from conftest import ROOT

FORKING = """
import os, signal, sys, threading
import numpy as np, requests
from bge_client import Client, ConfigurationError
from fakes.scripted import vector_of

url = sys.argv[1]

def in_child(action):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # a deadlock ends the child
        action()
        sys.exit(0)
    return pid

def exit_code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def run_forking(program: str, argument: str) -> tuple[str, str]:
    """Run the program and return its stdout and stderr."""
    run = subprocess.run(
        [sys.executable, "-c", FORKING + program, argument],
        cwd=ROOT / "tests",  # for `fakes`
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip(), run.stderr
