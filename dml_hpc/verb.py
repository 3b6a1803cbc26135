"""What every verb shares: ``--json``, ``--record``, ``--config``, the environment, the guard, the exit code."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dml_hpc import __version__
from dml_hpc.config import read_config
from dml_hpc.console import Console
from dml_hpc.errors import EXIT_JOB, EXIT_OK, EXIT_USER, AgreedError, JobError, Stopped, UserError, did_you_mean
from dml_hpc.launch import launch, one_thread
from dml_hpc.parameters import Finite, fits, wanted
from dml_hpc.signals import release_signals
from dml_hpc.stopping import Asked, stop_on_signals
from dml_hpc.watch import DEFAULT_DEADLINE_S

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.store.live import Live

Result = dict[str, Any]


def option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    """``click.option`` that also reads ``DML_HPC_<OPTION>`` and shows its default."""
    long = next(name for name in names if name.startswith("--"))
    settings.setdefault("envvar", "DML_HPC_" + long.split("/")[0].lstrip("-").replace("-", "_").upper())
    settings.setdefault("show_default", settings.get("default") is not None)
    return click.option(*names, **settings)


def _load_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    try:
        _check_environment(ctx.find_root().command)
        if path is None:
            return
        by_name = {long.lstrip("-"): parameter for parameter in _options(ctx.command)
                   for long in (*parameter.opts, *parameter.secondary_opts) if long.startswith("--")}
        by_name.pop("config")
        settings = read_config(path, verb_path(ctx), set(by_name), _all_verbs(ctx.find_root().command))
        defaults = {}
        for name, value in settings.items():
            parameter = by_name[name]
            if not fits(parameter, value):
                raise UserError(f"{path}: {name} = {value!r} is no value for '--{name}' ({wanted(parameter)})")
            if parameter.multiple and isinstance(value, str):
                value = [value]
            negated = f"--{name}" in parameter.secondary_opts  # no-scale = true means scale = false
            defaults[str(parameter.name)] = not value if negated else value
        ctx.default_map = defaults
    except UserError as error:
        raise click.UsageError(str(error), ctx) from None


def _options(command: click.Command) -> list[click.Option]:
    return [parameter for parameter in command.params if isinstance(parameter, click.Option)]


_OTHER_VARIABLES = ("DML_HPC_VENV", "DML_HPC_SLURM", "DML_HPC_SLURM_MPI", "DML_HPC_TEST_DEADLINE_S",
                    "DML_HPC_TEST_LIMIT_S")
"""What the project's scripts read; no options."""


def _check_environment(root: click.Command) -> None:
    """Raise `UserError` for a ``DML_HPC_`` variable that no verb reads: it is mistyped, and would do nothing."""
    known = {str(parameter.envvar) for verb in _commands(root) for parameter in _options(verb) if parameter.envvar}
    for name in os.environ:
        if name.startswith("DML_HPC_") and name not in known and name not in _OTHER_VARIABLES:
            raise UserError(f"the environment variable {name} is no option{did_you_mean(name, known)}; "
                            "unset it, or see --help")


def _commands(command: click.Command) -> list[click.Command]:
    if isinstance(command, click.Group):
        return [verb for sub in command.commands.values() for verb in _commands(sub)]
    return [command]


def _check_record(path: Path) -> None:
    """Raise `UserError` unless a record can be appended to ``path``, before the run spends any time."""
    if not path.absolute().parent.is_dir():
        raise UserError(f"--record: the folder {path.absolute().parent} does not exist; make it first (mkdir -p)")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise UserError(f"--record: {path} cannot be written; choose another file")
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            line = file.readline(1 << 26)
        try:
            is_record = "command" in json.loads(line)
        except (ValueError, TypeError, RecursionError):
            is_record = False
        if not is_record:
            raise UserError(f"--record: {path} holds something else than run records, which would be spoilt; choose "
                            "another file")


def verb_path(ctx: click.Context) -> str:
    """Return the verb as it is typed, without the program's name: ``train``, ``data import``."""
    return ctx.command_path.removeprefix(ctx.find_root().command_path).strip()


def _all_verbs(command: click.Command, prefix: str = "") -> set[str]:
    if isinstance(command, click.Group):
        inner = [_all_verbs(sub, f"{prefix} {name}".strip()) for name, sub in command.commands.items()]
        return set().union(*inner)
    return {prefix}


_COMMON: tuple[Any, ...] = (
    option("--json", "as_json", is_flag=True,
           help="Print one JSON object as the last line, and nothing else, on stdout."),
    option("--record", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
           help="Append one JSON line about this run to FILE."),
    option("--config", type=click.Path(path_type=Path), metavar="FILE.toml", is_eager=True, expose_value=False,
           callback=_load_config, help="Read options from FILE.toml, by their long names."),
    option("--progress/--no-progress", default=None, help="Show progress bars (default: when stderr is a terminal)."),
)
_DEADLINE = option("--deadline", type=Finite(min=0), default=DEFAULT_DEADLINE_S, metavar="SECONDS",
                   help="End a job that waits longer than this for a rank, naming it (0: wait for ever).")


class Verb(click.Command):
    """A verb with the common options, run by one process. Under a launcher only rank 0 works."""

    common: tuple[Any, ...] = _COMMON

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        holder: Any = lambda: None  # noqa: E731 -- click's decorators want a function to hang options on
        for add in reversed(self.common):
            add(holder)
        self.params += reversed(holder.__click_params__)

    def invoke(self, ctx: click.Context) -> int:
        """Run the verb and return its exit code."""
        if launch().rank > 0:
            return EXIT_OK
        callback, finish, arguments = self._prepare(ctx)
        return finish(callback(Console(**arguments), **ctx.params), 0, 1)

    def _prepare(self, ctx: click.Context) -> tuple[Any, Callable[[Result, int, int], int], dict[str, Any]]:
        started = time.time()
        if ctx.params.get("checkpoint") is not None:
            Asked.on_signals()  # before MPI starts: it leaves handlers that it finds in place
        release_signals()
        as_json, record = ctx.params.pop("as_json"), ctx.params.pop("record")
        progress = ctx.params.pop("progress")
        verb = verb_path(ctx)
        if launch().rank == 0 and record is not None:  # the rank that will write it
            _check_record(record)

        live = self._live(record, verb, started)
        if live is not None:
            ctx.params["live"] = live

        def finish(result: Result, rank: int, size: int) -> int:
            code = result.pop("exit_code", EXIT_OK)
            if rank == 0:
                entry = {"command": verb, "version": __version__, "ranks": size,
                         "seconds": round(time.time() - started, 6), **result}
                if record is not None:
                    from dml_hpc.reports.records import append_record

                    append_record(record, entry, sys.argv[1:], started)
                if live is not None:
                    live.remove()
                if as_json:
                    print(json.dumps(entry, allow_nan=False), flush=True)
            return code

        return self.callback, finish, {"json": as_json, "progress": progress}

    def _live(self, record: Path | None, verb: str, started: float) -> Live | None:
        """Return the live file of a run, None: it has none."""
        return None


class RanksVerb(Verb):
    """A verb run by every rank under the guard; its callback takes the communicator first."""

    common = (*_COMMON, _DEADLINE)

    def invoke(self, ctx: click.Context) -> int:
        """Run the verb on this rank and return its exit code."""
        from dml_hpc.mpi import guarded

        try:
            callback, finish, arguments = self._prepare(ctx)
        except UserError as error:
            raise click.UsageError(str(error), ctx) from None
        if ctx.params.get("reproducible"):
            one_thread()
        least_ranks = ctx.params.pop("min_ranks", None)
        if not ctx.params.pop("elastic", False):
            if least_ranks is not None:
                raise click.UsageError("--min-ranks is for --elastic: give that as well, or leave it out", ctx)
        else:
            from dml_hpc.store.saving import Memory

            least_ranks = least_ranks or 1
            ctx.params["memory"] = Memory()

        live = ctx.params.get("live")

        def body(comm: Intracomm) -> int:
            try:
                result = callback(comm, Console(rank=comm.rank, **arguments), **ctx.params)
                return finish(result, comm.rank, comm.size)
            except BaseException as error:
                if live is not None:
                    live.fail(error)
                raise

        return guarded(body, ctx.params.pop("deadline"), least_ranks=least_ranks)


class LongVerb(RanksVerb):
    """A verb whose run takes long: its callback takes ``live`` and ``probe`` too. With --record it can be watched."""

    common = (*RanksVerb.common, option(
        "--probe", is_flag=True, help="At the end measure the wire between neighbouring ranks, for the report: it "
        "names narrow links. Takes about a second."))

    def _live(self, record: Path | None, verb: str, started: float) -> Live | None:
        from dml_hpc.store.live import Live

        return None if record is None else Live(record, verb, sys.argv[1:], started)


class RunsVerb(Verb):
    """A verb that starts runs, whose records its ``--record`` is for; its callback gets the file as ``record``."""

    common = (_COMMON[0],
              option("--record", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                     default="scaling.jsonl", help="Append a JSON line about every run to FILE."),
              *_COMMON[2:])

    def invoke(self, ctx: click.Context) -> int:
        """Run the verb and return its exit code."""
        place = launch()
        if place.rank > 0:
            return EXIT_OK
        if place.size > 1:
            raise UserError(f"this starts ranks by itself: leave out {place.launcher}")
        record = ctx.params["record"]
        _check_record(record)
        ctx.params["record"] = None  # there is none of this verb itself
        callback, finish, arguments = self._prepare(ctx)
        return finish(callback(Console(**arguments), record=record, **ctx.params), 0, 1)


class SharedVerb(RanksVerb):
    """A verb that ranks share when there are any; one process alone does its work without starting MPI."""

    def invoke(self, ctx: click.Context) -> int:
        """Run the verb on this rank and return its exit code."""
        if launch().size > 1:
            return super().invoke(ctx)
        from dml_hpc.mpi import Alone

        ctx.params.pop("deadline")
        callback, finish, arguments = self._prepare(ctx)
        return finish(callback(Alone(), Console(**arguments), **ctx.params), 0, 1)


class Verbs(click.Group):
    """Verbs by name, of which some are of two words: of ``mf`` and ``mf evaluate`` the longer one counts."""

    def resolve_command(self, ctx: click.Context,
                        args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """See `click.Group.resolve_command`."""
        if " ".join(args[:2]) in self.commands:
            args = [" ".join(args[:2]), *args[2:]]
        return super().resolve_command(ctx, args)


def run(root: click.Group, arguments: list[str] | None) -> int:
    """Parse and run; a mistake on the command line is one line on stderr, from one rank, and exit code 2."""
    stop_on_signals()
    try:
        return root.main(args=arguments, prog_name="dml-hpc", standalone_mode=False) or EXIT_OK
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return EXIT_USER
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context is not None else ""
        line = " ".join(error.format_message().split()) + hint
        if launch().size > 1 and context is not None and isinstance(context.command, RanksVerb):
            return _all_leave(line)
        return _complain(line, EXIT_USER)
    except (UserError, JobError, AgreedError) as error:
        return _complain(str(error), error.exit_code)
    except MemoryError as error:
        return _complain(f"there is not enough memory: {error}", EXIT_JOB)
    except OSError as error:
        from dml_hpc.mpi import describe

        return _complain(describe(error), EXIT_USER)
    except Stopped as error:
        return _complain(str(error), error.exit_code)


def _all_leave(line: str) -> int:
    """Collective: end every rank, those too that found nothing wrong with their command line."""
    from dml_hpc.mpi import guarded

    return guarded(lambda comm: EXIT_OK, failure=(line, EXIT_USER))


def _complain(line: str, code: int) -> int:
    if launch().rank == 0:
        print(f"dml-hpc: {line}", file=sys.stderr, flush=True)
    return code
