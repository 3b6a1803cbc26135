"""What kinds of value options take, on the command line, in the environment and in a config file."""

from __future__ import annotations

import math
import re
from typing import Any

import click

from dml_hpc.errors import did_you_mean
from dml_hpc.store.every import Every


class Names(click.ParamType):
    """A list of names: ``a,b,c`` on the command line, a list or such a string in a config file."""

    name = "a,b,…"

    def __init__(self, known: tuple[str, ...] = ()):
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the names as a tuple; refuse one that is not among the known, if there are such."""
        # A list, from a config file, may name columns with commas or spaces at their ends.
        names = tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value
        for name in names:
            if self.known and name not in self.known:
                self.fail(f"{name!r} is not one of {', '.join(self.known)}{did_you_mean(name, self.known)}", param, ctx)
        return tuple(names)


class Sizes(Names):
    """A list of byte counts: ``4K,1M,123``; K, M, G and T are powers of 1024."""

    name = "BYTES,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the sizes in bytes."""
        sizes = []
        for word in super().convert(value, param, ctx):
            parts = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMGT]?)(?:i?B)?", word, re.IGNORECASE | re.ASCII)
            size = int(float(parts[1]) * _UNITS[parts[2].upper()]) if parts and len(parts[1]) < 18 else -1
            if not 0 <= size < 1 << 60:
                self.fail(f"{word!r} is no number of bytes (such as 4096, 64K, 1.5G)", param, ctx)
            sizes.append(size)
        return tuple(sizes)


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Size(Sizes):
    """A byte count: ``512M``; K, M, G and T are powers of 1024."""

    name = "BYTES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the size in bytes."""
        sizes = super().convert(value, param, ctx) if isinstance(value, str) else (value,)
        if len(sizes) != 1 or type(sizes[0]) is not int or sizes[0] < 1:
            self.fail(f"{value!r} is no number of bytes (such as 512M, 4G)", param, ctx)
        return sizes[0]


class Counts(click.ParamType):
    """A list of different numbers above 0, such as numbers of ranks: ``1,2,4``."""

    name = "N,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the numbers in ascending order."""
        words = [word.strip() for word in value.split(",")] if isinstance(value, str) else list(map(str, value))
        if not words or not all(re.fullmatch("[1-9][0-9]{0,6}", word, re.ASCII) for word in words):
            self.fail(f"{value!r} are no numbers above 0 (such as 1,2,4)", param, ctx)
        if len(set(words)) < len(words):
            self.fail(f"{value!r} names a number twice", param, ctx)
        return tuple(sorted(map(int, words)))


class Interval(click.ParamType):
    """How often: ``90s``, ``10m``, ``2h`` or ``500steps``."""

    name = "interval"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Every:
        """Return it in seconds, or in steps."""
        if isinstance(value, Every):
            return value
        parts = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(s|m|h|steps?)", str(value), re.ASCII)
        number, unit = parts.groups() if parts else ("0", "s")
        if len(number) > 12 or not float(number) or (unit not in _SECONDS and "." in number):
            self.fail(f"{value!r} is no interval (such as 60s, 10m, 500steps)", param, ctx)
        return Every(seconds=float(number) * _SECONDS[unit]) if unit in _SECONDS else Every(steps=int(number))


_SECONDS = {"s": 1, "m": 60, "h": 3600}


class WallTime(click.ParamType):
    """How long a job may take: ``2h``, ``90m``, or as Slurm has it: ``2:00:00``, ``1-12``, ``90`` (minutes)."""

    name = "D-HH:MM:SS|2h|90m"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return it in whole seconds."""
        from dml_hpc.batch.cluster import seconds

        parts = re.fullmatch(r"([0-9]{1,7}(?:\.[0-9]{1,6})?)([smhd])", str(value), re.ASCII)
        time_s = float(parts[1]) * {**_SECONDS, "d": 86400}[parts[2]] if parts else seconds(str(value))
        if not 1 <= time_s < math.inf:
            self.fail(f"{value!r} is no time (such as 2:00:00, 1-12:00:00, 90m, 2h)", param, ctx)
        return math.ceil(time_s)


class Gpus(click.ParamType):
    """GPUs of a node: ``4``, or with their kind as Slurm calls it, ``a100:4``."""

    name = "[KIND:]N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Return (kind, number); "" for any kind."""
        if isinstance(value, tuple):
            return value
        kind, _, number = str(value).rpartition(":")
        if not re.fullmatch(r"[1-9][0-9]{0,3}", number, re.ASCII) or not re.fullmatch(r"[\w.-]*", kind, re.ASCII):
            self.fail(f"{value!r} is no number of GPUs (such as 4, a100:4)", param, ctx)
        return kind, int(number)


class Finite(click.FloatRange):
    """A number in a range; neither NaN nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number

    def _describe_range(self) -> str:  # for --help, where click would say "x<=None"
        return "" if self.min is None and self.max is None else super()._describe_range()


class FiniteOrAuto(Finite):
    """A number in a range, or ``auto``: it is found."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or "auto"."""
        return value if value == "auto" else super().convert(value, param, ctx)

    def _describe_range(self) -> str:  # "auto" is in none
        return ""


class BatchSize(click.ParamType):
    """A number of rows, or ``full`` for the whole data set."""

    name = "ROWS|full"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Return the number, or "full"."""
        if value == "full":
            return "full"
        if str(value).isascii() and str(value).isdigit() and int(value) > 0:
            return int(value)
        return self.fail(f"{value!r} is neither a positive number of rows nor 'full'", param, ctx)


class Widths(click.ParamType):
    """Widths of layers: ``128,64``, or ``128x64`` where commas part other things."""

    name = "N,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the widths."""
        words = re.split("[,x]", value) if isinstance(value, str) else [str(word) for word in value]
        if not all(word.strip().isascii() and word.strip().isdigit() and 0 < int(word) < 1 << 31 for word in words):
            self.fail(f"{value!r} are no widths of layers (such as 128,64)", param, ctx)
        return tuple(int(word) for word in words)


class ClassWeight(click.ParamType):
    """What each class counts: ``balanced``, or ``0=1,1=5``; ``0=1;1=5`` where commas part other things."""

    name = "balanced|VALUE=W,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | dict[float, float]:
        """Return "balanced", or the weights by class value."""
        if value == "balanced" or isinstance(value, dict):
            return value
        found = {}
        for word in re.split("[,;]", str(value)):
            try:
                name, weight = (float(part) for part in word.split("="))
            except ValueError:
                self.fail(f"{word!r} is no weight of a class (such as 1=5)", param, ctx)
            if not (math.isfinite(name) and math.isfinite(weight) and weight >= 0) or name in found:
                self.fail(f"{word!r}: a class's weight is a number ≥ 0, given once", param, ctx)
            found[name] = weight
        return found


class Tolerance(click.ParamType):
    """When there are enough triplets: ``energy=0.95`` or ``sigma=1e-3``."""

    name = "energy=SHARE|sigma=RATIO"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Return ("energy", share) or ("ratio", ratio to the largest)."""
        if isinstance(value, tuple):
            return value
        name, _, text = str(value).partition("=")
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if name not in ("energy", "sigma") or not 0 < number <= 1:
            self.fail(f"{value!r} is neither energy=SHARE nor sigma=RATIO, with a number above 0 up to 1", param, ctx)
        return "energy" if name == "energy" else "ratio", number


class GridShape(click.ParamType):
    """Rows and columns of a grid of ranks, or other blocks: ``2x4``."""

    def __init__(self, name: str = "RxC", what: str = "ranks"):
        self.name = name
        self._what = what

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return (rows, columns)."""
        if isinstance(value, tuple):
            return value
        parts = re.fullmatch(r"([1-9][0-9]{0,5})[x×]([1-9][0-9]{0,5})", str(value), re.ASCII)
        if parts is None:
            self.fail(f"{value!r} is no grid of {self._what} (such as 2x4)", param, ctx)
        return int(parts[1]), int(parts[2])


class Limits(click.ParamType):
    """The least and the greatest value: ``1,5``."""

    name = "LOW,HIGH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """Return (least, greatest)."""
        if isinstance(value, tuple):
            return value
        try:
            low, high = (float(word) for word in str(value).split(","))
        except ValueError:
            low, high = math.inf, -math.inf
        if not -math.inf < low <= high < math.inf:
            self.fail(f"{value!r} is no range (such as 1,5)", param, ctx)
        return low, high


class Contenders(click.ParamType):
    """A list of algorithms with options of the verb ``verb``: ``sync,sync:optimizer=adam:step-size=0.01``."""

    name = "ALGORITHM[:OPTION=VALUE…],…"

    def __init__(self, verb: str):
        self._verb = verb

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return (what was written, options by name) of each."""
        if not isinstance(value, str):
            return value
        assert ctx is not None
        root = ctx.find_root().command
        assert isinstance(root, click.Group)
        known = {option.opts[0].lstrip("-"): option for option in root.commands[self._verb].params
                 if isinstance(option, click.Option)
                 and option.name not in ("algorithm", "output", "trace", "overwrite")}
        algorithm = next(option for option in root.commands[self._verb].params if option.name == "algorithm")
        found = []
        for word in (word.strip() for word in value.split(",")):
            name, *settings = word.split(":")
            changes = {"algorithm": algorithm.type.convert(name, param, ctx)}
            for setting in settings:
                key, equals, text = setting.partition("=")
                if key not in known or (not equals and not known[key].is_flag):
                    self.fail(f"{setting!r} in {word!r} is no option of {self._verb}{did_you_mean(key, known)}", param,
                              ctx)
                option = known[key]
                changes[str(option.name)] = click.BOOL.convert(text or "true", param, ctx) if option.is_flag else \
                    option.type.convert(text, param, ctx)
            found.append((word, changes))
        return tuple(found)


def fits(parameter: click.Option, value: Any) -> bool:
    """Say whether a TOML value is of the kind an option takes; click itself would make 2 of 2.5 and 1 of true."""
    if parameter.is_flag:
        return isinstance(value, bool)
    if isinstance(parameter.type, Names):
        return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    if isinstance(parameter.type, (Counts, Widths)) and isinstance(value, list):
        return all(type(item) is int for item in value)
    if isinstance(parameter.type, BatchSize):
        return value == "full" or type(value) is int
    if isinstance(parameter.type, click.types.IntParamType):
        return type(value) is int
    if isinstance(parameter.type, click.types.FloatParamType):
        return type(value) in (int, float)
    return isinstance(value, str)


def wanted(parameter: click.Option) -> str:
    """Return in words what kind of value an option takes."""
    if parameter.is_flag:
        return "true or false"
    if isinstance(parameter.type, Names):
        return "a string or a list of strings"
    if isinstance(parameter.type, (BatchSize, click.types.IntParamType)):
        return "a whole number" + (" or \"full\"" if isinstance(parameter.type, BatchSize) else "")
    return "a number" if isinstance(parameter.type, click.types.FloatParamType) else "a string"
