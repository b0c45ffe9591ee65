"""Options of a command, made from the settings that they set."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from rsseg_cli.config import Option, alternatives, flag_of, options_of
from rsseg_cli.errors import UsageError


@dataclass(frozen=True)
class Options:
    """Marks a parameter of a command that stands for options: `config: Annotated[PredictConfig, Options()]`.

    Attributes:
        names: fields that become options, separated by spaces; "" for all that declare one.
        of: settings objects that hold the defaults. The options then have none of their own, and the command
            gets a dict of the values that the user gave, for settings that a file may hold as well.
    """

    names: str = ""
    help: Mapping[str, str] = field(default_factory=dict)
    of: tuple[Any, ...] = ()

    def items(self, settings: Any) -> list[_Item]:
        sources = [(type(item), vars(item)) for item in self.of] or [(settings, _defaults(settings))]
        known = {
            name: _Item(name, self.help.get(name, option.help), option, kind, values[name], bool(self.of))
            for source, values in sources
            for name, (option, kind) in options_of(source).items()  # type: ignore[arg-type]
        }
        return [known[name] for name in self.names.split() or known]


def _defaults(settings: type[Any]) -> dict[str, Any]:
    return {
        item.name: item.default if item.default_factory is MISSING else item.default_factory()
        for item in fields(settings)
    }


@dataclass(frozen=True)
class _Item:
    """A field as an option of the command line."""

    name: str
    help: str
    option: Option
    kind: Any
    default: Any
    given_only: bool

    @property
    def flag(self) -> str:
        return flag_of(self.name, self.option)

    @property
    def key(self) -> str:
        return self.flag.removeprefix("--").replace("-", "_")

    def parameter(self) -> inspect.Parameter:
        """The parameter that Typer reads."""
        kind, default = self._cli_kind(), None if self.given_only else self._cli_default()
        if kind is bool and not self.option.flags:  # without a form that turns it off
            default = False
        flags = self.option.flags or ((self.flag,) if kind is bool else ())
        text = f"{self.help}{self._default_text()}" if self.given_only else self.help
        metavar = self.option.metavar or self.option.unit.upper() or None
        said = typer.Option(*flags, metavar=metavar, help=text)
        annotation = Annotated[kind | None if default is None else kind, said]  # type: ignore[valid-type]
        return inspect.Parameter(
            self.key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )

    def _cli_kind(self) -> Any:
        parts = alternatives(self.kind)
        if self.option.choices and not self.option.metavar:
            return Literal[self.option.choices]
        if len(parts) > 1:  # a number or a word; a name or a path
            return str
        if get_origin(parts[0]) is tuple and Ellipsis in get_args(parts[0]):
            return list[get_args(parts[0])[0]] if self.option.repeat else str  # type: ignore[misc]
        return list[str] if get_origin(parts[0]) is Mapping else parts[0]

    def _cli_default(self) -> Any:
        kind = self._cli_kind()
        if (
            self.default in (None, self.option.unset)
            or get_origin(kind) is list
            or (self.default == "" and self.option.choices)
        ):
            return None
        if isinstance(self.default, tuple) and kind is str:
            return ",".join(map(str, self.default))
        return str(self.default) if kind is str else self.default

    def _default_text(self) -> str:
        """The default in words, where the help does not say it and a flag can turn it off."""
        value = self.default
        if "Default:" in self.help or value in (None, "", ()) or (value is False and not self.option.flags):
            return ""
        if isinstance(value, bool):
            return f" Default: {'on' if value else 'off'}."
        between = "," if self._cli_kind() is str else " "
        shown = between.join(map("{:g}".format, value)) if isinstance(value, tuple) else f"{value}"
        return f" Default: {shown}."

    def read(self, value: Any) -> Any:
        """What the user gave, as the field takes it."""
        part, *others = alternatives(self.kind)
        if self.option.unset is not None and value == self.option.unset:
            raise UsageError(f"{self.flag} {value}: needs {self.option.bounds}")
        if isinstance(value, list):
            return _pairs(self.flag, value) if get_origin(part) is Mapping else tuple(value)
        if not isinstance(value, str) or part in (str, Path):
            return value
        if others and value in get_args(others[0]):
            return value
        if get_origin(part) is tuple:
            return self._listed(value, get_args(part)[0])
        if others:
            if not value.isdecimal():
                words = " or ".join(get_args(others[0]))
                raise UsageError(f"{self.flag} {value}: needs a whole number or {words}")
            return int(value)
        return value

    def _listed(self, text: str, kind: type[Any]) -> tuple[Any, ...]:
        parts = [part.strip() for part in text.split(",")]
        if kind is str:
            return tuple(filter(None, parts))
        try:
            return tuple(map(kind, parts))
        except ValueError as err:
            words = "whole numbers" if kind is int else "numbers"
            example = self.option.example or self.option.metavar
            raise UsageError(f"{self.flag} {text}: needs {words} with commas between, as {example}") from err


def _pairs(flag: str, texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UsageError(f"{flag} {text!r}: needs KEY=VALUE, as COMPRESS=ZSTD")
        pairs[key] = value
    return pairs


def from_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with options in place of its parameters marked by `Options`.

    Typer reads them from the signature. A field that the user did not give keeps the default of its class.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Any, list[_Item]]] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind, *notes = get_args(parameter.annotation) or (parameter.annotation,)
        marks = [note for note in notes if isinstance(note, Options)]
        if marks:
            items = marks[0].items(kind)
            groups[parameter.name] = (dict if marks[0].of else kind, items)
            parameters += [item.parameter() for item in items]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    defaults = {parameter.name: parameter.default for parameter in parameters}

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, (make, items) in groups.items():
            given = {}
            for item in items:
                value = values.pop(item.key)
                if value is not None and value != defaults[item.key]:
                    given[item.name] = item.read(value)
            values[name] = make(**given)
        command(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
