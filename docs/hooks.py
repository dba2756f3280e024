"""Hooks of the documentation: the page on the YAML, patterns in the navigation, and no assets from a network."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

CONFIGURATION = "reference/configuration.md"

_REMOTE = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>", re.IGNORECASE)
_REMOTE_LINK = re.compile(r"<link\b(?![^>]*rel=[\"']?canonical)[^>]*href=[\"']?(?:https?:)?//[^>]*>", re.IGNORECASE)

_INTRODUCTION = """\
# Configuration

Each dataset has one file, `ae_pipeline/defs/<dataset>/defs.yaml`:

```yaml
type: ae_pipeline.orchestration.component.AutoencoderPipeline

attributes:
  dataset: orders
  identity: [order_id]
  event_time: created_at
  start: 2025-01-01
```

This page lists every key below `attributes`. An unknown key is an error, and so are settings that contradict one
another. `dg check defs` reports such errors without a run.
"""

_CONTRACT = """\
## The schema contract

The first run infers `data/contracts/<dataset>.yaml` from the landed files. Edit it where it is wrong. It has one
entry for each column, with these keys:
"""

_DECLARATION = """\
## A declared column

A column below `columns` has a type, such as `price: number`, or a mapping with these keys. The first run copies them to
the schema contract.
"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replace each pattern in the navigation by the pages that match it."""
    config.nav = list(_expanded(config.nav or [], Path(config.docs_dir)))
    return config


def _expanded(entries: list[Any], docs: Path) -> Iterator[Any]:
    for entry in entries:
        for title, target in entry.items():
            if isinstance(target, str) and "*" in target:
                pages = sorted(docs.glob(target), key=lambda page: (page.stem not in {"index", "README"}, page.name))
                if pages:
                    yield {title: [page.relative_to(docs).as_posix() for page in pages]}
            else:
                yield entry


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page on the YAML, written from the descriptions of the configuration models."""
    files.append(File.generated(config, CONFIGURATION, content=configuration_page()))
    return files


def on_post_page(output: str, page: Any, config: MkDocsConfig) -> str:  # noqa: ARG001
    """Fail where a page would load something from a network."""
    if found := _REMOTE.search(output) or _REMOTE_LINK.search(output):
        raise PluginError(f"{page.file.src_uri} loads {found.group(0)[:200]}; copy the file into docs/ instead")
    return output


def configuration_page() -> str:
    """Return the reference of the YAML as Markdown."""
    from ae_pipeline.config.columns import ColumnDeclaration
    from ae_pipeline.config.pipeline import PipelineConfig
    from ae_pipeline.ingestion.contract import ColumnRule

    return "\n".join(
        [
            _INTRODUCTION,
            *_sections(PipelineConfig.model_json_schema(by_alias=False)),
            _CONTRACT,
            *_table(ColumnRule.model_json_schema(), {}),
            "",
            _DECLARATION,
            *_table(ColumnDeclaration.model_json_schema(), {}),
            "",
        ]
    )


def _sections(schema: Mapping[str, Any]) -> Iterator[str]:
    definitions = schema["$defs"]
    yield from ["## The dataset", "", *_table(schema, definitions, nested=False), ""]
    for name, facts in schema["properties"].items():
        if section := _section(facts, definitions):
            yield from [f"## `{name}`", "", _escaped(facts.get("description", "")), ""]
            yield from [*_table(section, definitions, prefix=f"{name}."), ""]


def _section(facts: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the schema of a nested section, or None for a plain value."""
    for part in (facts, *facts.get("anyOf", []), *facts.get("allOf", [])):
        target = definitions.get(part.get("$ref", "").rpartition("/")[2], {})
        if "properties" in target:
            return dict(target)
    return None


def _table(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str = "", nested: bool = True
) -> Iterator[str]:
    definitions = definitions or schema.get("$defs", {})
    yield from ["| key | type | default | description |", "| --- | --- | --- | --- |"]
    for name, facts in schema["properties"].items():
        section = _section(facts, definitions)
        if section is not None and not nested:
            continue
        default = "required" if name in schema.get("required", []) else _default(facts)
        description = _escaped(facts.get("description", ""))
        if section is None:
            yield f"| `{prefix}{name}` | {_type(facts, definitions)} | {default} | {description} |"
        else:
            yield f"| **{prefix}{name}** | section | | {description} |"
            yield from list(_table(section, definitions, prefix=f"{prefix}{name}."))[2:]


def _escaped(text: str) -> str:
    """Escape Markdown, but leave code spans as they are, except for the column separator of the table."""
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)


def _default(facts: Mapping[str, Any]) -> str:
    match facts.get("default"):
        case None:
            return "not set" if "default" in facts else "empty"
        case bool() as value:
            return f"`{str(value).lower()}`"
        case [] | {} | "":
            return "empty"
        case list() as values:
            return f"`[{', '.join(map(str, values))}]`"
        case value:
            return f"`{value}`"


def _type(facts: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in facts:
        return _type(definitions[facts["$ref"].rpartition("/")[2]], definitions)
    if parts := facts.get("anyOf") or facts.get("allOf"):
        named = dict.fromkeys(_type(part, definitions) for part in parts if part.get("type") != "null")
        return " or ".join(named)
    if "enum" in facts:
        return ", ".join(f"`{value}`" for value in facts["enum"])
    if facts.get("type") == "array":
        return f"list of {_type(facts.get('items', {}), definitions)}"
    if "properties" in facts:
        return f"mapping of {', '.join(f'`{name}`' for name in facts['properties'])}"
    if facts.get("type") == "object":
        return f"mapping to {_type(facts.get('additionalProperties', {}), definitions)}"
    kind = {"string": facts.get("format", "text"), "integer": "integer", "number": "number", "boolean": "true or false"}
    return " ".join([kind.get(facts.get("type", ""), "any"), *_limits(facts)])


def _limits(facts: Mapping[str, Any]) -> Iterator[str]:
    words = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    limits = [f"{sign} {facts[key]:g}" for key, sign in words.items() if key in facts]
    if limits:
        yield ", ".join(limits)
