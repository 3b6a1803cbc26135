"""Arguments that are those of another verb, which ranks are to run: looked at here, before anything is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from dml_hpc.errors import did_you_mean

NOWHERE = Path(".dml-hpc-output")
"""Stands for an output that is left out."""
_GROUPS = {"allreduce": "bench"}
"""The groups of verbs that are called by their last word."""


def arguments_of(*verbs: str, needs_output: bool = True) -> Any:
    """Return a callback for arguments that are those of a verb, whose name comes first where there are ``verbs``.

    It returns them as they are, and what the verb makes of them by name, with the verb's name as ``verb``, the names
    of those that were not left to their defaults as ``given``, the data (or the ratings) as ``inputs``, and where
    among the arguments they stand as ``places``. What the verb would refuse is refused as there, but with
    ``needs_output`` false an output may be left out: it is None.
    """
    def parse(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> Any:
        root = ctx.find_root()
        verb, rest = (words[0], words[1:]) if len(verbs) > 1 else (verbs[0], words)
        if verb == "bench" and rest[:1] and _GROUPS.get(rest[0]) == "bench":
            verb, rest = rest[0], rest[1:]
        if verb not in verbs:
            raise click.UsageError(f"{verb!r} is not one of {', '.join(verbs)}{did_you_mean(verb, verbs)}: what is to "
                                   f"run stands after --, such as -- {verbs[0]} DATA …", ctx)
        command, path = _command(root, verb)
        needed = any(one.name == "output" and one.required for one in command.params)
        before = () if needs_output or not needed else ("--output", str(NOWHERE))
        inner = command.make_context(path, [*before, *rest], parent=root)
        parsed = inner.params
        given = {name for name in parsed if inner.get_parameter_source(name) not in (None, ParameterSource.DEFAULT)}
        if before and parsed["output"] == NOWHERE:
            parsed["output"] = None
            given.remove("output")
        inputs = _inputs(parsed)
        places = _places(command, root, path, [*before, *rest], inputs)
        ahead = len(words) - len(rest) - len(before)
        return words, {**parsed, "verb": verb, "given": given, "inputs": inputs,
                       "places": [place + ahead for place in places]}

    return parse


def _command(root: click.Context, verb: str) -> tuple[click.Command, str]:
    """Return a verb's command and how it is called behind the program's name."""
    group = root.command
    assert isinstance(group, click.Group)
    if verb not in _GROUPS:
        return group.commands[verb], verb
    within = group.commands[_GROUPS[verb]]
    assert isinstance(within, click.Group)
    return within.commands[verb], f"{_GROUPS[verb]} {verb}"


def _places(command: click.Command, root: click.Context, path: str, words: Sequence[str],
            inputs: Sequence[Path]) -> list[int]:
    """Return where among ``words`` the ``inputs`` stand: the same words may also be values of options."""
    marks = {f".dml-hpc-{place}": place for place, word in enumerate(words) if Path(word) in inputs}
    if not marks:
        return []
    marked = list(words)
    for mark, place in marks.items():
        marked[place] = mark
    return [marks[str(one)] for one in _inputs(command.make_context(path, marked, parent=root).params)]


def _inputs(parsed: Mapping[str, Any]) -> Sequence[Path]:
    """Return a verb's DATA, or its RATINGS; nothing where it has neither."""
    return [parsed["ratings"]] if "ratings" in parsed else parsed.get("data") or []
