"""Settings as frozen dataclasses, to plain data and back, strictly; and "a.b=value" from the command line."""

import ast
import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from deformable_detr.core.errors import ConfigError
from deformable_detr.core.reading import settings_value
from deformable_detr.core.short_text import one_line, shown

Config = TypeVar("Config")

_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


def to_dict(config: object) -> dict[str, Any]:
    """Settings as data that JSON can hold: nested dataclasses become dicts, tuples become lists.

    A field whose metadata has "kinds" may hold one of several classes; the entry "name" says which one.
    """
    assert dataclasses.is_dataclass(config)
    assert not isinstance(config, type)
    return {field.name: _plain_field(field, getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_dict(config_class: type[Config], data: object) -> Config:
    """Config built from the data that `to_dict` gave; settings left out keep their defaults.

    Lists are taken for tuples and integers for numbers; nothing else is converted.

    Raises:
        ConfigError: a setting that does not exist (the nearest name is offered), is missing or has the wrong type.
    """
    return _dataclass(config_class, data, "")


def updated(config: Config, changes: Mapping[str, Any]) -> Config:
    """Copy of a config with some settings changed, all at once.

    Args:
        config: nested dataclasses.
        changes: by dotted names such as "model.num_queries", or by the last part of a name that only one setting has.
            A group takes a dataclass, which replaces it, or a dict of the settings that change in it.

    Raises:
        ConfigError: an unknown setting, a name that several have, or a value of the wrong type.
    """
    data = to_dict(config)
    for name, full, value in _resolved(config, changes):
        field, part = _field_and_place(config, data, full)
        last = full.rsplit(".", 1)[-1]
        if isinstance(value, Mapping) and isinstance(part[last], dict):
            part[last] |= value
        elif isinstance(value, Mapping) and isinstance(part[last], str):
            raise _decided(name, full, part[last], field)
        else:
            part[last] = _plain_field(field, value)
    return from_dict(type(config), data)


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Copy of a config with settings such as "model.num_queries=100" replaced, see `updated`.

    A value is read as JSON or as a Python literal, and as text where the setting takes text.

    Raises:
        ConfigError: not of the form name=value, an unknown setting, or a value of the wrong type.
    """
    return updated(config, parsed_overrides(config, overrides))


def parsed_overrides(config: object, overrides: Sequence[str]) -> dict[str, Any]:
    """Settings such as "model.num_queries=100" as names and values, for `updated`.

    Raises:
        ConfigError: not of the form name=value, an unknown setting, or a value of the wrong type.
    """
    texts = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(f"cannot read the setting {override!r}; write name=value")
        texts[name] = text.strip()
    values = {}
    for name, full, text in _resolved(config, texts):
        holder = config
        *path, last = full.split(".")
        for step in path:
            holder = _group_class(holder, step)
        values[name] = _parse(text, get_type_hints(_class_of(holder))[last], name)
    return values


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by the dotted names that `--set` takes: {"model": {"dropout": 0}} becomes {"model.dropout": 0}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flat_settings(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def named_settings(config: object, changes: Mapping[str, Any]) -> frozenset[str]:
    """Full names of the settings that changes for `updated` give a value to; of a group, of all that it gives.

    Raises:
        ConfigError: an unknown setting, or a name that several have.
    """
    values = {
        full: to_dict(value) if dataclasses.is_dataclass(value) else value
        for _, full, value in _resolved(config, changes)
    }
    return frozenset(flat_settings(values))


def _resolved(config: object, changes: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Name as given, full name and value of each change."""
    known = _setting_names(config)
    found = []
    for name, value in changes.items():
        full = [one for one in known if one == name] or [one for one in known if one.rsplit(".", 1)[-1] == name]
        if not full:
            raise _unknown(name, known)
        if len(full) > 1:
            raise ConfigError(f"several settings are called {name}: {', '.join(full)}; say which")
        found.append((name, full[0], value))
    return found


def _field_and_place(config: object, data: dict[str, Any], full: str) -> tuple[Any, dict[str, Any]]:
    """Field of a setting, and the dict in `data` that holds its value."""
    holder: object = config
    *path, last = full.split(".")
    for step in path:
        inner = data[step]
        if isinstance(inner, str):
            raise _decided(full, step, inner, _field(holder, step))
        data, holder = inner, _group_class(holder, step)
    return _field(holder, last), data


def _decided(name: str, group: str, value: str, field: Any) -> ConfigError:
    way_out = field.metadata.get("instead", f"set {group} to a group of settings first")
    return ConfigError(f"{name} is set, but {group} is {shown(value)}, which decides on it; {way_out}")


def _class_of(holder: object) -> type:
    return holder if isinstance(holder, type) else type(holder)


def _field(holder: object, name: str) -> Any:
    return next(field for field in dataclasses.fields(_class_of(holder)) if field.name == name)


def _group_class(holder: object, name: str) -> object:
    """Group of settings in a field; its class where the field holds a word instead; None if it is no group."""
    value = None if isinstance(holder, type) else getattr(holder, name)
    if dataclasses.is_dataclass(value):
        return value
    annotation = get_type_hints(_class_of(holder))[name]
    return next((one for one in (annotation, *get_args(annotation)) if dataclasses.is_dataclass(one)), None)


def _plain_field(field: Any, value: object) -> Any:
    if "kinds" in field.metadata and dataclasses.is_dataclass(value):
        name = next(name for name, kind in field.metadata["kinds"]().items() if type(value) is kind)
        return {"name": name, **to_dict(value)}
    return _plain(value)


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    assert value is None or isinstance(value, bool | int | float | str), value
    return value


def _setting_names(holder: object, prefix: str = "") -> list[str]:
    """Dotted names of all settings and groups of settings, depth first."""
    names = []
    for field in dataclasses.fields(_class_of(holder)):
        names.append(prefix + field.name)
        group = _group_class(holder, field.name)
        if group is not None:
            names += _setting_names(group, f"{prefix}{field.name}.")
    return names


def _unknown(name: str, known: Sequence[str]) -> ConfigError:
    name = one_line(name, 100)
    near = max(known, key=lambda one: _likeness(name, one), default="")
    hint = f"did you mean {near}?" if _likeness(name, near) >= 0.6 else f"there are {', '.join(known)}"
    return ConfigError(f"unknown setting {name}; {hint}")


def _likeness(name: str, known: str) -> float:
    """Likeness of two names, 0..1; the last part alone counts, too, as people leave out a setting's group."""
    pairs = ((name, known), (name.rsplit(".", 1)[-1], known.rsplit(".", 1)[-1]))
    return max(difflib.SequenceMatcher(None, one, other).ratio() for one, other in pairs)


def _parse(text: str, annotation: Any, name: str) -> Any:
    value = _literal(text)
    if value is not text and not fits(value, annotation) and fits(text, annotation):
        return text  # e.g. a class or file called 2024
    return _convert(value, annotation, name)


def _literal(text: str) -> Any:
    try:
        return settings_value(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value of JSON is of a type, as `from_dict` takes it: lists fit tuples, and integers fit numbers."""
    try:
        _convert(value, annotation, "")
    except ConfigError:
        return False
    return True


def _dataclass(config_class: type[Config], data: Any, where: str) -> Config:
    assert dataclasses.is_dataclass(config_class)
    if not isinstance(data, Mapping):
        name = where or config_class.__name__
        raise ConfigError(f"setting {name} is {shown(data)}; it must be a group of settings")
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
    return config_class(
        **{
            key: _kind(fields[key], value, prefix + key)
            if "kinds" in fields[key].metadata
            else _convert(value, hints[key], prefix + key)
            for key, value in data.items()
        }
    )


def _kind(field: Any, value: Any, where: str) -> Any:
    """Dataclass of the class that "name" says, or of the field's default where there is no "name"."""
    kinds: Mapping[str, type] = field.metadata["kinds"]()
    if not isinstance(value, Mapping):
        raise ConfigError(f"setting {where} is {shown(value)}; it must be a group of settings")
    settings = dict(value)
    name = settings.pop("name", None)
    if name is None:
        return _dataclass(type(field.default_factory()), settings, where)
    if not isinstance(name, str) or name not in kinds:
        raise ConfigError(f"setting {where}.name is {shown(name)}; there are {', '.join(kinds)}")
    return _dataclass(kinds[name], settings, where)


def _convert(value: Any, annotation: Any, where: str) -> Any:
    """Value converted to its annotated type, or a ConfigError that names the setting."""
    origin, options = get_origin(annotation), get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        assert isinstance(annotation, type)
        return _dataclass(annotation, value, where)
    if origin in (Union, types.UnionType):
        group = next((option for option in options if dataclasses.is_dataclass(option)), None)
        if group is not None and isinstance(value, Mapping):  # so that an error inside names the inner setting
            return _convert(value, group, where)
        for option in options:
            if fits(value, option):
                return _convert(value, option, where)
    elif origin is Literal:
        for option in options:
            if type(value) is type(option) and value == option:
                return option
        near = difflib.get_close_matches(shown(value).strip("'"), [str(option) for option in options], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"setting {where} is {shown(value)}; it must be {_describe(annotation)}{hint}")
    elif origin is tuple and isinstance(value, list | tuple):
        if len(options) == 2 and options[1] is Ellipsis:
            return tuple(_convert(one, options[0], f"{where}[{i}]") for i, one in enumerate(value))
        if len(value) == len(options):
            pairs = enumerate(zip(value, options, strict=True))
            return tuple(_convert(one, option, f"{where}[{i}]") for i, (one, option) in pairs)
    elif annotation is float and isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):  # an integer of hundreds of digits is no number that can be computed with
            return float(value)
    elif isinstance(annotation, type) and type(value) is annotation:
        return value
    raise ConfigError(f"setting {where} is {shown(value)}; it must be {_describe(annotation)}")


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
    if dataclasses.is_dataclass(annotation):
        return "a group of settings"
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))
