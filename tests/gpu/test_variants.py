"""What `variants` lists has been launched by the tests of this folder, of which this is the last."""

from __future__ import annotations

from variants import VARIANTS


def test_every_instance_is_launched(launched):
    missing = {(file, name) for file, names in VARIANTS.items() for name in names} - launched
    assert sorted(missing) == []
