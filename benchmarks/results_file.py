"""Write a results file that says what was measured, on what, when and how."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dml_hpc import __version__
from dml_hpc.reports.records import environment

RESULTS = Path(__file__).parent / "results"


def read_cases(name: str) -> list[dict[str, Any]]:
    """Return the cases of a results file that is there."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["cases"]


def write_results(name: str, cases: list[dict[str, Any]], notes: str) -> Path:
    """Write ``benchmarks/results/NAME.json`` with the cases and all that is needed to repeat them; return its path."""
    path = RESULTS / f"{name}.json"
    root = RESULTS.parents[1]
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, text=True, capture_output=True)
    measured = ["dml_hpc", "kernels", "benchmarks/*.py"]
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *measured], cwd=root).returncode
    table = {
        "benchmark": name,
        "notes": notes,
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "dml_hpc": __version__,
        "commit": commit.stdout.strip() + ("-dirty" if changed else ""),
        "environment": {key: value for key, value in environment().items() if key != "host"},
        "cases": cases,
    }
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return path
