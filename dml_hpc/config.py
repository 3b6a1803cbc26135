"""Settings from a TOML file: any option of a command by its long name, at the top or under the command's own table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from dml_hpc.errors import UserError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_config(path: Path, verb: str, known: set[str], verbs: set[str]) -> dict[str, Any]:
    """Return the settings of ``path`` that hold for ``verb``, by option name (``batch-size`` or ``batch_size``).

    Keys at the top level hold for the verb that reads the file; a table named after a verb (``[train]``,
    ``["data import"]``) holds for that verb only and goes before the top level; other verbs' tables are skipped.

    Raises `UserError` for a file that is missing or no TOML, and for a key the verb has no option for, naming
    the nearest that it has.
    """
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise UserError(f"cannot read the config file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {str(error).splitlines()[0]}") from None
    top = {key: value for key, value in table.items() if not isinstance(value, dict)}
    for key, value in table.items():
        if isinstance(value, dict) and key not in verbs:
            raise UserError(f"{path}: no command is called '{key}'{did_you_mean(key, verbs)}")
    settings = {}
    for source in (top, table.get(verb, {})):
        for key, value in source.items():
            name = key.replace("_", "-")
            if name not in known:
                raise UserError(f"{path}: '{verb}' has no option '{key}'{did_you_mean(name, known)}")
            settings[name] = value
    return settings
