"""Plain mappings (from YAML or JSON) to frozen dataclasses, strictly: an unknown key is an error."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml

from sotto.errors import SottoError

T = TypeVar("T")
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # PyYAML takes 1e-4 for a word


def parse(kind: type[T], values: object, where: str) -> T:
    """Build the dataclass `kind` from a mapping, checking every key and every type.

    `where` names the place in messages ("data.train"). Raises SottoError on an unknown or missing key, a value
    of the wrong type, or whatever the dataclass's own validation says.
    """
    if not isinstance(values, Mapping):
        raise SottoError(f"{where}: expected keys and values, found {values!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = hints_of(kind)  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise SottoError(f"{where}: unknown key '{key}'{nearest(str(key), fields)}")
    arguments = {key: convert(hints[key], value, f"{where}.{key}") for key, value in values.items()}
    missing = [name for name, field in fields.items() if name not in arguments and is_required(field)]
    if missing:
        raise SottoError(f"{where}: missing key '{missing[0]}'")
    try:
        return kind(**arguments)
    except SottoError as error:
        raise SottoError(f"{where}: {error}") from error


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """Types by field; found anew they would take most of the time that a long record takes to read."""
    return typing.get_type_hints(kind)


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """The end of an error message: the nearest known word, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"


def is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def convert(kind: Any, value: object, where: str) -> Any:
    """`value` as the annotated type `kind`; the types that configurations use, and no others."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return convert_union(kind, value, where)
    if origin is typing.Literal:
        return convert_literal(kind, value, where)
    if origin is tuple:
        return convert_tuple(kind, value, where)
    if origin in (dict, Mapping):
        return convert_mapping(kind, value, where)
    if dataclasses.is_dataclass(kind):
        return parse(typing.cast(type, kind), value, where)
    return convert_plain(kind, value, where)


def convert_plain(kind: Any, value: object, where: str) -> Any:
    is_truth = isinstance(value, bool)
    if kind is Any or (isinstance(value, kind) and not (kind is int and is_truth)):
        return value
    if kind is float and isinstance(value, int) and not is_truth:
        return float(value)
    if kind is float and isinstance(value, str) and EXPONENT.fullmatch(value):
        return float(value)
    raise SottoError(f"{where}: expected {kind.__name__}, found {value!r}")


def convert_mapping(kind: Any, value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SottoError(f"{where}: expected keys and values, found {value!r}")
    return {str(key): convert(get_args(kind)[1], item, f"{where}.{key}") for key, item in value.items()}


def convert_literal(kind: Any, value: object, where: str) -> object:
    if value not in get_args(kind):
        known = ", ".join(str(choice) for choice in get_args(kind))
        raise SottoError(f"{where}: {value!r} is not one of {known}")
    return value


def convert_union(kind: Any, value: object, where: str) -> Any:
    if value is None and type(None) in get_args(kind):
        return None
    choices = [choice for choice in get_args(kind) if choice is not type(None)]
    errors = []
    for choice in choices:
        try:
            return convert(choice, value, where)
        except SottoError as error:
            errors.append(error)
    raise errors[0]


def convert_tuple(kind: Any, value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise SottoError(f"{where}: expected a list, found {value!r}")
    parts = get_args(kind)
    if len(parts) == 2 and parts[1] is Ellipsis:
        return tuple(convert(parts[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if len(parts) != len(value):
        raise SottoError(f"{where}: expected {len(parts)} values, found {len(value)}")
    return tuple(
        convert(part, item, f"{where}[{index}]") for index, (part, item) in enumerate(zip(parts, value, strict=True))
    )


def to_plain(value: Any) -> Any:
    """The inverse of `parse`: dataclasses to dicts and tuples to lists, for YAML and JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if hasattr(value, "plain"):  # one that holds configurations by name
            return value.plain()
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises SottoError with the line where it does not parse."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SottoError(f"{path}: cannot be read ({error.strerror}); check the path of the recipe") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SottoError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SottoError(f"{path}: a recipe is keys and values, found {type(values).__name__}")
    return values
