"""What is made ahead comes in order, and nothing more is made once something could not be."""

from __future__ import annotations

import pytest

from dml_hpc.data.prefetch import ahead


def test_it_comes_in_order():
    assert list(ahead(lambda item: item * item, range(10))) == [item * item for item in range(10)]


def test_after_a_failure_nothing_more_is_made():
    made = []

    def make(item):
        made.append(item)
        if item == 3:
            raise OSError(item)
        return item

    found = []
    with pytest.raises(OSError, match="3"):
        for item in ahead(make, range(100), depth=5):
            found.append(item)
    assert found == [0, 1, 2] and made == [0, 1, 2, 3]
