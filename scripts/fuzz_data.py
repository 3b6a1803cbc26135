#!/usr/bin/env python3
"""Damage small data sets at random and see what `data verify`, `data info` and reading make of them.

    scripts/fuzz_data.py [--cases 2000] [--seed 0] [--workers 2] [--forged] [--case N]

Prints how each kind of damage ended; exit code 1 when anything crashed, hung, printed a traceback, or read wrong rows
that `data verify` finds nothing wrong with. ``--forged`` adds damaged bytes that the manifest confirms.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fuzz_support import run_cases  # type: ignore[import-not-found]  # it lies beside the tests


def main() -> int:
    """Run the cases and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--forged", action="store_true")
    parser.add_argument("--case", type=int, help="only this one")
    chosen = parser.parse_args()
    numbers = range(chosen.cases) if chosen.case is None else [chosen.case]
    counts: Counter[tuple[str, str]] = Counter()
    bad = []
    for case in run_cases(numbers, chosen.seed, chosen.workers, chosen.forged):
        counts[case.kind, case.verdict] += 1
        if not case.good or chosen.case is not None:
            bad.append(case)
            print(f"case {case.number}: {case.base}, {case.kind}: {case.verdict}\n{case.detail}", flush=True)
    for (kind, verdict), count in sorted(counts.items()):
        print(f"{kind:32} {verdict:36} {count:6}")
    wrong = [case for case in bad if not case.good]
    print(f"{len(numbers)} cases, {len(wrong)} bad")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
