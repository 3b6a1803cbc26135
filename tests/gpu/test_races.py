"""ThreadSanitizer finds no race in any kernel, and its eyes are open: it finds one where there is one.

The kernels' own tests are run once more, each file in a process of its own, with the first launches watched.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from races import HUNTING, run_watched, sanitizer_works
from test_shim import INSTANCES, RUN
from variants import VARIANTS

HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("test_*.py")
               if "device" in path.read_text() and path.name not in ("test_shim.py", "test_races.py", "test_cuda.py"))


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Return what has been launched, by test file, as it becomes known; skip where nothing can be watched."""
    if not sanitizer_works(tmp_path_factory.mktemp("sanitizer")):
        pytest.skip("there is no g++ with ThreadSanitizer")
    return {}


@pytest.mark.parametrize("kernel", ["turned<true>", "turned<false>"])
def test_it_sees_a_race(launched, kernel, tmp_path):
    code = RUN.format(folder=str(HERE), instances=INSTANCES, kernel=kernel, dtype="int64", shared_bytes=512,
                      threads=True, sanitizer="thread")
    done, found = run_watched(["-c", code], tmp_path)
    if kernel == "turned<true>":
        assert (done.returncode, found) == (0, ""), done.stderr + found
    else:
        assert done.returncode == 66
        assert "data race" in found
        assert "turned<false>" in found


@pytest.mark.parametrize("file", FILES)
def test_there_is_no_race(launched, file, tmp_path):
    report = tmp_path / "launched.json"
    done, found = run_watched(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file)], tmp_path,
                              **{HUNTING: str(report)})
    assert not found, found[:6000]
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    launched[file] = json.loads(report.read_text())


def test_every_instance_has_been_launched(launched):
    if len(launched) < len(FILES):
        pytest.skip("not all of this file's tests have run")
    missing = {(file, name) for file, names in VARIANTS.items() for name in names
               if not any(name in report.get(file, ()) for report in launched.values())}
    assert sorted(missing) == []
