"""Messages about a `defs.yaml` that cannot be loaded: one line with file, line, key, rule and remedy."""

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import BaseModel, ValidationError
from yaml import MappingNode, SafeLoader, ScalarNode, SequenceNode, YAMLError, compose_all

from ae_pipeline.common.errors import PipelineError
from ae_pipeline.common.text import first_line
from ae_pipeline.config.pipeline import PipelineConfig

COMPONENT_TYPE = "ae_pipeline.orchestration.component.AutoencoderPipeline"

_FILE_KEYS = ("type", "attributes", "requirements", "template_vars_module", "post_processing")
"""Keys that Dagster accepts at the top level of a `defs.yaml`."""

_POSITION = re.compile(r"`?(?P<key>.*?) at .*:(?P<line>\d+)`?$", re.DOTALL)
"""Location of an error after Dagster has added file and line to pydantic's."""

_SHOWN = 3
"""Errors of one file, at most, that its message lists."""


def describe_error(error: BaseException, path: Path) -> str:
    """Return why a file cannot be loaded, as one line: file, line, key, rule and remedy.

    Args:
        error: Error that loading the file raised.
        path: The file, relative to the project.
    """
    return " ".join(_describe(_cause(error), path).split())


def repeated_keys(text: str) -> list[tuple[int, str]]:
    r"""Return line and name of each key that a section of a YAML file has already. YAML forbids it; PyYAML does not.

    >>> repeated_keys("identity: [a]\nlabel: x\nidentity: [b]")
    [(3, 'identity')]
    """
    repeated, seen, pending = [], set[int](), list(compose_all(text, Loader=SafeLoader))
    while pending:
        node = pending.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        match node:
            case MappingNode(value=pairs):
                names = [key.value for key, _ in pairs if isinstance(key, ScalarNode)]
                lines = [key.start_mark.line + 1 for key, _ in pairs if isinstance(key, ScalarNode)]
                repeated += [(lines[i], name) for i, name in enumerate(names) if name in names[:i]]
                pending += [value for _, value in pairs]
            case SequenceNode(value=values):
                pending += values
    return sorted(repeated)


def is_expected(error: BaseException) -> bool:
    """Return whether an error comes from the content of a file, and not from a defect of the code."""
    expected = (ValidationError, YAMLError, UnicodeError, OSError, dg.DagsterError, PipelineError)
    return (
        any(isinstance(each, expected) for each in _chain(error)) or _is_type_error(_cause(error)) or _is_empty(error)
    )


def _describe(error: BaseException, path: Path) -> str:
    match error:
        case ValidationError():
            problems = [_describe_key(details, path) for details in error.errors()]
            more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
            return "; ".join(problems[:_SHOWN]) + more
        case YAMLError():
            mark, start = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or first_line(error)
            context = f" ({error.context}, which starts on line {start.line + 1})" if start else ""  # type: ignore[attr-defined]
            return f"{path}{line}: not valid YAML: {problem}{context}; correct this line or those above it"
        case UnicodeError():
            return f"{path}: not UTF-8 text: {error}; save the file with the encoding UTF-8"
        case OSError():
            return f"{path}: cannot be read: {error.strerror or error}; put a readable file there, or delete it"
        case PipelineError():
            return f"{path}: {error}"
    if _is_empty(error):
        return f"{path}: the file is empty; write type and attributes of a dataset into it, or delete the file"
    if _is_type_error(error):
        return f"{path}: type: {_first_sentence(error)}; write type: {COMPONENT_TYPE}"
    name = "" if isinstance(error, dg.DagsterError) else f"{type(error).__name__}: "
    return f"{path}: {name}{first_line(Exception(str(error).strip()))}; correct the file"


def _describe_key(details: Any, path: Path) -> str:
    """Return the message about one key that pydantic rejected."""
    location = ".".join(map(str, details["loc"]))
    match = _POSITION.fullmatch(location)
    key, line = (match["key"], f":{match['line']}") if match else (location, "")
    head = f"{path}{line}: {key}: " if key else f"{path}{line}: "
    value = details["input"]
    match details["type"]:
        case "extra_forbidden":
            return f"{head}unknown key; {_suggestion(key)}"
        case "missing":
            return f"{head}the key is required; add it"
        case "model_type" if value is None:
            return f"{path}: attributes: the section is empty; give at least dataset"
        case "value_error":
            return head + str(details["ctx"]["error"])
    shown = "" if isinstance(value, dict | list) else f", not {str(value)[:80]!r}"
    return f"{head}{details['msg']}{shown}; correct the value"


def _suggestion(key: str) -> str:
    *sections, name = key.split(".")
    names = _keys_of(sections)
    if close := get_close_matches(name, names, 1):
        return f"did you mean {close[0]!r}?"
    return f"remove it, or choose one of {', '.join(names)}" if names else "remove it"


def _keys_of(sections: list[str]) -> Iterable[str]:
    """Return the keys of a section of the file; none if it is not a section with fixed keys."""
    if not sections:
        return _FILE_KEYS
    model: Any = PipelineConfig
    for section in sections[1:]:
        field = model.model_fields.get(section)
        options = getattr(field and field.annotation, "__args__", None) or (field and field.annotation,)
        model = next((each for each in options if isinstance(each, type) and issubclass(each, BaseModel)), None)
        if model is None:
            return ()
    return list(model.model_fields)


def _chain(error: BaseException) -> Iterator[BaseException]:
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__ or following.__context__


def _cause(error: BaseException) -> BaseException:
    """Return the error that says most: below Dagster's wrappers, and with Dagster's line numbers."""
    chain = list(_chain(error))
    ours = [each for each in chain if isinstance(each, PipelineError | ValidationError)]
    return next(iter(ours), next((each for each in chain if "ComponentTree" not in type(each).__name__), error))


def _is_empty(error: BaseException) -> bool:
    return "No components found" in str(error)


def _is_type_error(error: BaseException) -> bool:
    """Return whether Dagster did not find a component under the name in `type`."""
    signs = ("UnresolvableSymbol", "Component type", "component type name")
    return any(sign in f"{type(error).__name__} {error}" for sign in signs)


def _first_sentence(error: BaseException) -> str:
    return first_line(Exception(str(error).strip())).rstrip(".")
