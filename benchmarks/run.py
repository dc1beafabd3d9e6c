"""Every benchmark, one after the other, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAMES = (
    *("upsampling", "tubes_cost", "cam_cost", "rise_cost", "rise_estimator"),
    *("planted_table", "long_video", "models_cost", "curves_cost", "million_rows", "bands"),
)
"""`planted_methods` and `planted_bench` take long and have targets of their own (`make bench-planted`,
`make bench-tasks`)."""


def main() -> None:
    for name in sys.argv[1:] or NAMES:
        print(f"── {name}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).with_name(f"{name}.py"))], check=True)


if __name__ == "__main__":
    main()
