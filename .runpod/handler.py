"""RunPod's Hub looks for a handler here. The worker's own is worker/handler.py."""

import sys
from pathlib import Path
from runpy import run_path

WORKER = Path(__file__).resolve().parents[1] / "worker"

if __name__ == "__main__":
    sys.path.insert(0, str(WORKER))  # as `python worker/handler.py` has it
    run_path(str(WORKER / "handler.py"), run_name="__main__")
