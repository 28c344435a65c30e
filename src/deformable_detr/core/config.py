"""Frozen dataclasses to plain data and back, strictly; and "a.b=value" settings from the command line."""

import ast
import dataclasses
import difflib
import json
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from deformable_detr.core.errors import ConfigError

Config = TypeVar("Config")

_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


def to_dict(config: object) -> dict[str, Any]:
    """Every setting as data that JSON can hold: nested dataclasses become dicts, tuples become lists."""
    assert dataclasses.is_dataclass(config)
    assert not isinstance(config, type)
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_dict(config_class: type[Config], data: Mapping[str, Any]) -> Config:
    """The config that `to_dict` gave; settings left out keep their defaults.

    Lists are taken for tuples and integers for numbers; nothing else is converted.

    Raises:
        ConfigError: a setting that does not exist (the nearest name is offered), is missing or has the wrong type.
    """
    return _dataclass(config_class, data, "")


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """A copy of `config` with settings such as "model.num_queries=100" replaced, all at once.

    A value is read as JSON or as a Python literal, and as text where the setting takes text.

    Raises:
        ConfigError: not of the form name=value, an unknown setting, or a value of the wrong type.
    """
    data = to_dict(config)
    known = _setting_names(type(config))
    for override in overrides:
        name, equals, text = override.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(f"cannot read the setting {override!r}; write name=value")
        if name not in known:
            raise _unknown(name, known)
        *path, last = name.split(".")
        part, annotation = data, get_type_hints(type(config))
        for step in path:
            part, annotation = part[step], get_type_hints(annotation[step])
        part[last] = _parse(text.strip(), annotation[last], name)
    return from_dict(type(config), data)


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    assert value is None or isinstance(value, bool | int | float | str), value
    return value


def _setting_names(config_class: type, prefix: str = "") -> list[str]:
    """Dotted names of all settings, depth first; a nested config is not a setting itself."""
    hints = get_type_hints(config_class)
    names = []
    for field in dataclasses.fields(config_class):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            names += _setting_names(hint, f"{prefix}{field.name}.")
        else:
            names.append(prefix + field.name)
    return names


def _unknown(name: str, known: Sequence[str]) -> ConfigError:
    near = max(known, key=lambda one: _likeness(name, one), default="")
    hint = f"did you mean {near}?" if _likeness(name, near) >= 0.6 else f"there are {', '.join(known)}"
    return ConfigError(f"unknown setting {name}; {hint}")


def _likeness(name: str, known: str) -> float:
    """0..1. The last part counts, too: people leave out the group a setting is in, or err in it."""
    pairs = ((name, known), (name.rsplit(".", 1)[-1], known.rsplit(".", 1)[-1]))
    return max(difflib.SequenceMatcher(None, one, other).ratio() for one, other in pairs)


def _parse(text: str, annotation: Any, name: str) -> Any:
    value = _literal(text)
    if value is not text and not _fits(value, annotation) and _fits(text, annotation):
        return text  # e.g. a class or file called 2024
    return _convert(value, annotation, name)


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _fits(value: Any, annotation: Any) -> bool:
    try:
        _convert(value, annotation, "")
    except ConfigError:
        return False
    return True


def _dataclass(config_class: type[Config], data: Any, where: str) -> Config:
    assert dataclasses.is_dataclass(config_class)
    if not isinstance(data, Mapping):
        name = where or config_class.__name__
        raise ConfigError(f"setting {name} is {data!r}; it must be a group of settings")
    prefix = f"{where}." if where else ""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    for key in data:
        if key not in fields:
            raise _unknown(f"{prefix}{key}", [prefix + name for name in fields])
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise ConfigError(f"setting {prefix}{name} is missing")
    hints = get_type_hints(config_class)
    return config_class(**{key: _convert(value, hints[key], prefix + key) for key, value in data.items()})


def _convert(value: Any, annotation: Any, where: str) -> Any:
    """`value` as the annotation wants it, or a ConfigError that names the setting."""
    origin, options = get_origin(annotation), get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        assert isinstance(annotation, type)
        return _dataclass(annotation, value, where)
    if origin in (Union, types.UnionType):
        for option in options:
            if _fits(value, option):
                return _convert(value, option, where)
    elif origin is Literal:
        for option in options:
            if type(value) is type(option) and value == option:
                return option
        near = difflib.get_close_matches(str(value), [str(option) for option in options], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"setting {where} is {value!r}; it must be {_describe(annotation)}{hint}")
    elif origin is tuple and isinstance(value, list | tuple):
        if len(options) == 2 and options[1] is Ellipsis:
            return tuple(_convert(one, options[0], f"{where}[{i}]") for i, one in enumerate(value))
        if len(value) == len(options):
            pairs = enumerate(zip(value, options, strict=True))
            return tuple(_convert(one, option, f"{where}[{i}]") for i, (one, option) in pairs)
    elif annotation is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(annotation, type) and type(value) is annotation:
        return value
    raise ConfigError(f"setting {where} is {value!r}; it must be {_describe(annotation)}")


def _describe(annotation: Any) -> str:
    origin, options = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in options)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in options)
    if origin is tuple:
        if len(options) == 2 and options[1] is Ellipsis:
            return f"a list, each {_describe(options[0])}"
        return f"a list of {len(options)}, each {_describe(options[0])}"
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by the names that `--set` knows them by: {"model": {"dropout": 0}} is {"model.dropout": 0}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flat_settings(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
