"""What goes to a cluster by other ways than pip from a clone: the container's definition, the folder of wheels."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEFINITION = (ROOT / "slurm" / "dml-hpc.def").read_text()


def test_the_container_copies_what_the_package_is_made_of_and_installs_extras_that_exist():
    section = re.search(r"%files\n(.*?)\n\n", DEFINITION, re.DOTALL)
    copied = {line.split()[0] for line in section[1].splitlines()}
    assert all((ROOT / name).exists() for name in copied)
    text = (ROOT / "pyproject.toml").read_text()
    folders = set(re.findall(r'^"dml_hpc\.\w+" = "(\w+)"$', text, re.MULTILINE))  # of package-dir
    assert folders >= {"kernels"} and copied >= {"pyproject.toml", "dml_hpc", "README.md", "LICENSE", *folders}
    extras = re.search(r"\[([\w,]+)\]\"", DEFINITION)[1].split(",")
    assert all(re.search(rf"^{extra} = \[", text, re.MULTILINE) for extra in extras)


@pytest.mark.parametrize(("arguments", "word"), [
    ([], "name the folder"), (["--python", "2.7", "wheels"], "--python is like 3.11"),
    (["wheels", "--arch", "sparc"], "--arch is"), (["one", "two"], "one folder"), ([str(ROOT)], "holds something"),
    (["wheels", "--extras"], "wants a value"), (["--what"], "no option --what"),
])
def test_a_folder_of_wheels_that_cannot_be_made_is_one_line(arguments, word, tmp_path):
    done = subprocess.run([ROOT / "scripts" / "wheelhouse.sh", *arguments], cwd=tmp_path, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
