"""Reads files of settings, checked field by field: a project's, TOML with overrides laid over it, and YAML."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from neurovol.errors import UserError
from neurovol.settings import ProjectSettings


def explained(error: ValidationError, file: str) -> str:
    """One line per wrong field: file, field, value, rule."""
    lines = []
    places = [problem["loc"] for problem in error.errors()]
    for problem in error.errors():
        if any(len(p) > len(problem["loc"]) and p[: len(problem["loc"])] == problem["loc"] for p in places):
            continue  # "the list is too short", said only because its one item was refused
        field = ".".join(str(part) for part in problem["loc"]) or "the file as a whole"
        rule = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            rule = "there is no such key; look for a typing mistake"
        value = "" if problem["type"] == "missing" or isinstance(problem["input"], dict) else f" = {problem['input']!r}"
        lines.append(f"{file}: {field}{value}: {rule}")
    return "\n".join(lines)


Model = TypeVar("Model", bound=BaseModel)


def checked(model: type[Model], where: str, /, **values: Any) -> Model:
    """A model of these values, whatever they are called; a UserError that names `where`, field, value and rule."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(explained(error, where)) from None


def with_overrides(raw: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A project's raw tables with `section.key` values laid over them."""
    result = dict(raw)
    for dotted, value in overrides.items():
        section, _, key = dotted.partition(".")
        if not key:
            result[section] = value
            continue
        table = result.get(section, {})
        if not isinstance(table, dict):
            raise UserError(f"--set {dotted}: {section} is not a section of settings")
        result[section] = with_overrides(table, {key: value})
    return result


def parse_override(text: str) -> tuple[str, Any]:
    """`train.steps=100` as ("train.steps", 100); the value is read as TOML, else taken as text."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UserError(f"--set {text}: expected section.key=value, for example train.steps=100")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def load_settings(file: Path, overrides: dict[str, Any] | None = None) -> ProjectSettings:
    """Read and check a project file; a UserError names file, field, value and rule."""
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such project file; give the path of a project.toml") from None
    except IsADirectoryError:
        raise UserError(f"{file}: a folder, not a project file; give the path of a project.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid TOML: {error}") from None
    return checked(ProjectSettings, str(file), **with_overrides(raw, overrides or {}))


def load_yaml(model: type[Model], file: Path, way_out: str) -> Model:
    """Read and check a YAML file; a UserError names file, field, value and rule, or where it is not there `way_out`."""
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}; {way_out}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid YAML: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds a {type(found).__name__} where `key: value` lines are expected")
    return checked(model, str(file), **found)
