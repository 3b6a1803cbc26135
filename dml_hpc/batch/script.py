"""A batch script made from a template: its ``#SBATCH`` lines changed, the job's arguments written into it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import dml_hpc
from dml_hpc.errors import UserError

FOLDER = "DML_HPC_SLURM"
"""The variable that says where the batch scripts, and what they share, are; the place is also told to the job."""
_OPTION = re.compile(r"#SBATCH\s+--([a-z-]+)(?:=(\S*))?")


def templates() -> Path:
    """Return the folder of batch scripts: the one that ``DML_HPC_SLURM`` names, else the one that was installed."""
    package = Path(dml_hpc.__file__).resolve().parent
    named = os.environ.get(FOLDER)
    for folder in [Path(named).absolute()] if named else [package / "slurm", package.parent / "slurm"]:
        if (folder / "site.sh").is_file():
            return folder
    where = f"{FOLDER}={named}" if named else f"{package / 'slurm'}"
    raise UserError(f"{where} holds no site.sh: set {FOLDER} to the folder of the batch scripts, the project's slurm/")


def read_template(name: str) -> str:
    """Return a template's text. Raises `UserError` where it cannot be read."""
    path = templates() / name
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"the batch script {path} cannot be read: {why}") from None


def settings(script: str) -> dict[str, str]:
    """Return the options of sbatch that a script sets, by their long names; "" for one without a value."""
    return {found[1]: found[2] or "" for line in script.splitlines() if (found := _OPTION.match(line))}


def make_script(template: str, changed: Mapping[str, str], folder: Path, environment: Mapping[str, str],
                arguments: Sequence[str], left_out: Collection[str] = ()) -> str:
    """Return the template with options of sbatch ``changed`` ("" for one without a value), for a job from ``folder``.

    Those that are ``left_out`` are no longer there.
    ``environment`` is set in the job unless something else is said where it is submitted, and ``arguments`` stand in
    the place of those that would be given after the script's name. Everything is quoted. Raises `UserError` for a value
    that Slurm cannot read.
    """
    lines = template.splitlines()
    left = {**changed, "chdir": str(folder)}
    last = max((number for number, line in enumerate(lines) if line.startswith("#SBATCH")), default=0)
    header = []
    for line in lines[:last + 1]:
        option = _OPTION.match(line)
        if option is not None and option[1] in left_out:
            continue
        if option is None or option[1] not in left:
            header.append(line)
        else:
            header.append(_line(option[1], left.pop(option[1])))
    header += [_line(name, value) for name, value in left.items()]
    block = [f"export SLURM_SUBMIT_DIR={shlex.quote(str(folder))}",
             *(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
             f"set -- {shlex.join(arguments)}"]
    # How the template itself is used is no longer so.
    options = [line for line in header if line.startswith("#SBATCH")]
    return "\n".join([lines[0], "# Written by `dml-hpc slurm`: submit it with sbatch, from anywhere.", "", *options, "",
                      "# Where the job runs, and what with.", *block, *lines[last + 1:]]) + "\n"


def _line(name: str, value: str) -> str:
    # Slurm reads quotes as a shell does, but takes backslashes away between them too.
    if "\\" in value or not value.isprintable():
        raise UserError(f"--{name} {value!r}: Slurm cannot read a backslash or a control character in a batch script; "
                        "choose another")
    return f"#SBATCH --{name}" + (f"={shlex.quote(value)}" if value else "")
