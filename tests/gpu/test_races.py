"""ThreadSanitizer finds no race in any kernel, and its eyes are open: it finds one where there is one.

The kernels' own tests are run once more on a device that has one instance of each form of a kernel, each file in a
process of its own, with the first launches watched.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from races import HUNTING, run_watched, sanitizer_works, watched
from test_shim import INSTANCES, RUN
from variants import VARIANTS

HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("test_*.py")
               if re.search(r"^def test_\w+\((quick_)?device\b", path.read_text(), re.M)
               and path.name not in ("test_shim.py", "test_cuda.py", "test_benchmark.py"))
AT_ONCE = 2


@pytest.fixture(scope="module")
def sanitizer(tmp_path_factory):
    """Skip where nothing can be watched."""
    if not sanitizer_works(tmp_path_factory.mktemp("sanitizer")):
        pytest.skip("there is no g++ with ThreadSanitizer")


@pytest.fixture(scope="module")
def runs(request, sanitizer, tmp_path_factory):
    """Start the files that this run's tests ask for, two at a time; return their futures."""
    def run(file):
        folder = tmp_path_factory.mktemp(file, numbered=True)
        report = folder / "launched.json"
        done, found = run_watched(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file)],
                                  folder, **{HUNTING: str(report)})
        return done, found, json.loads(report.read_text()) if report.exists() else {}

    asked = {item.callspec.params["file"] for item in request.session.items
             if item.path == request.path and "file" in getattr(getattr(item, "callspec", None), "params", ())}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        # The longest first.
        yield {file: pool.submit(run, file) for file in sorted(asked, key=lambda file: -(HERE / file).stat().st_size)}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("kernel", ["turned<true>", "turned<false>"])
def test_it_sees_a_race(sanitizer, kernel, tmp_path):
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
def test_there_is_no_race(runs, file):
    done, found, _ = runs[file].result()
    assert not found, found[:6000]
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_every_kernel_has_been_watched(runs):
    if len(runs) < len(FILES):
        pytest.skip("not all of this file's tests are run")
    reports = [run.result()[2] for run in runs.values()]
    missing = {(file, name) for file in VARIANTS for name in watched(file)
               if not any(report.get(file, {}).get(name) for report in reports)}
    assert sorted(missing) == []
