"""Damaged data sets end in a clear word: a sample of what scripts/fuzz_data.py tries."""

from __future__ import annotations

import pytest
from fuzz_damage import FORGED, KINDS
from fuzz_support import run_cases


@pytest.mark.parametrize("seed", [0])
def test_no_damage_crashes_hangs_or_reads_wrong_rows_unnoticed(seed: int) -> None:
    count = 3 * (len(KINDS) + len(FORGED))
    cases = list(run_cases(range(count), seed, workers=2, forged=True))
    assert len(cases) == count
    bad = [case for case in cases if not case.good]
    assert not bad, "\n".join(map(str, bad))
    refused = [case for case in cases if "refused" in case.verdict]
    assert len(refused) > count // 4, "the damage hardly reached anything"
