"""Where a process sits: the NUMA domain it is bound to."""

from __future__ import annotations

from pathlib import Path

import pytest

from dml_hpc.comm import topology


@pytest.fixture
def two_sockets(tmp_path, monkeypatch):
    """A machine of two domains with three cores each, as the kernel describes it; `bind` binds this process."""
    for name, cores in (("node0", "0-1,4\n"), ("node1", "2-3,5\n"), ("node2", "\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpulist").write_text(cores)
    monkeypatch.setattr(topology, "NODES", Path(tmp_path))

    def bind(*cores):
        monkeypatch.setattr("os.sched_getaffinity", lambda process: set(cores))

    return bind


@pytest.mark.parametrize(("cores", "domain"), [((4,), 0), ((0, 1), 0), ((3, 5), 1), ((1, 2), 0), (range(6), 0)])
def test_a_process_bound_to_one_domain_knows_it(two_sockets, cores, domain):
    two_sockets(*cores)
    assert topology.numa_domain() == domain


def test_a_machine_that_does_not_tell_has_one_domain(two_sockets, monkeypatch, tmp_path):
    two_sockets(3)
    monkeypatch.setattr(topology, "NODES", tmp_path / "nothing")
    assert topology.numa_domain() == 0
