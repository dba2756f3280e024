"""Versions of the data contract: written beside the table when they change, and kept until their rows are deleted."""

import datetime as dt
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jinja2
from open_data_contract_standard.model import CustomProperty, OpenDataContractStandard

from ae_pipeline.common.escape import without_html
from ae_pipeline.latents.data_contract import CONTRACT, PAGE, sla, unit_of
from ae_pipeline.latents.files import TableFiles


def read_contract(files: TableFiles) -> OpenDataContractStandard | None:
    """Return the contract of a table, or None if it has none yet."""
    text = files.read_text(CONTRACT)
    return OpenDataContractStandard.from_string(text) if text is not None else None


def update_contract(
    contract: OpenDataContractStandard,
    files: TableFiles,
    last_versions: Callable[[], Mapping[str, int]],
    now: dt.datetime,
) -> OpenDataContractStandard:
    """Set the version of a contract, and write it with its page if it differs from the previous contract.

    Other columns or other latent axes increase the first number: models that were fitted on the latents must be
    refitted. Another model with the same axes increases the second number. Every other change increases the third one.
    After a change of the first number, the previous contract stays in `_contract/versions`. Its status is `deprecated`,
    and its `endOfLife` is the day until which the rows of its latent space are readable.

    Args:
        contract: Result of `build_contract`.
        files: Files of the table.
        last_versions: Function that reads the newest version of the table in each latent space from its whole log.
        now: Current time, UTC.

    Returns:
        The contract in force, with its version.
    """
    previous = read_contract(files)
    if previous is None:
        return _write(contract, files, "1.0.0", [], now)
    today = f"{now:%Y-%m-%d}"
    retention = next(float(str(entry.value)) for entry in contract.slaProperties or [] if entry.property == "retention")
    space, previous_space = _custom_property(contract, "latentSpace"), _custom_property(previous, "latentSpace")
    earlier = [
        # The current retention applies to all spaces, because it decides when their files are deleted.
        {**entry, "readableUntil": _days_after(entry["retiredOn"], retention)}
        for entry in _earlier_spaces(previous, space, last_versions, today)
    ]
    _update_ends_of_life(files, earlier)
    earlier = [entry for entry in earlier if entry["readableUntil"] >= today]
    major, minor, patch = map(int, str(previous.version).split("."))
    has_other_axes = _custom_property(contract, "latentAxes") != _custom_property(previous, "latentAxes")
    if has_other_axes or _columns_and_types(contract) != _columns_and_types(previous):
        _deprecate(previous, files, _days_after(today, retention))
        return _write(contract, files, f"{major + 1}.0.0", earlier, now)
    if space != previous_space:
        return _write(contract, files, f"{major}.{minor + 1}.0", earlier, now)
    if _content(_with_earlier_spaces(contract, earlier)) != _content(previous):
        return _write(contract, files, f"{major}.{minor}.{patch + 1}", earlier, now)
    return previous


def _earlier_spaces(
    previous: OpenDataContractStandard, space: str, last_versions: Callable[[], Mapping[str, int]], today: str
) -> list[dict[str, Any]]:
    """Return the earlier spaces of the previous contract without the current space, the newest one first.

    The space of the previous contract is the newest one, unless it is the current space.
    """
    earlier = [entry for entry in _custom_property(previous, "earlierSpaces", []) if entry["latentSpace"] != space]
    previous_space = _custom_property(previous, "latentSpace")
    if space == previous_space:
        return earlier
    retired = {
        "latentSpace": previous_space,
        "modelVersion": _custom_property(previous, "modelVersion"),
        "latentAxes": _custom_property(previous, "latentAxes"),
        "contractVersion": previous.version,
        "tableVersion": last_versions().get(previous_space),
        "retiredOn": today,
    }
    return [retired, *(entry for entry in earlier if entry["latentSpace"] != previous_space)]


def _custom_property(contract: OpenDataContractStandard, name: str, default: Any = None) -> Any:
    return next((entry.value for entry in contract.customProperties or [] if entry.property == name), default)


def _columns_and_types(contract: OpenDataContractStandard) -> list[tuple[str | None, ...]]:
    return [(c.name, c.physicalType) for table in contract.schema_ or [] for c in table.properties or []]


def _content(contract: OpenDataContractStandard) -> str:
    """Return the contract as YAML, without its version and the time of that version."""
    return contract.model_copy(update={"version": None, "contractCreatedTs": None}).to_yaml()


def _with_earlier_spaces(contract: OpenDataContractStandard, earlier: list[dict[str, Any]]) -> OpenDataContractStandard:
    if not earlier:
        return contract
    entry = CustomProperty(
        property="earlierSpaces",
        value=earlier,
        description="Earlier latent spaces. To read one, open its tableVersion. Its rows are readable until the day in "
        "readableUntil.",
    )
    return contract.model_copy(update={"customProperties": [*(contract.customProperties or []), entry]})


def _days_after(day: str, days: float) -> str:
    return f"{dt.date.fromisoformat(day) + dt.timedelta(days=days):%Y-%m-%d}"


def _deprecate(contract: OpenDataContractStandard, files: TableFiles, until: str) -> None:
    """Write a contract to `_contract/versions` as deprecated, with the day until which its rows are readable."""
    slas = [entry for entry in contract.slaProperties or [] if entry.property != "endOfLife"]
    old = contract.model_copy(update={"status": "deprecated", "slaProperties": [*slas, sla("endOfLife", until)]})
    files.write_text(_deprecated_path(contract.version), old.to_yaml())


def _deprecated_path(version: object) -> str:
    return f"_contract/versions/{version}.yaml"


def _update_ends_of_life(files: TableFiles, earlier: list[dict[str, Any]]) -> None:
    """Update deprecated contracts whose end of life has changed with the retention."""
    for entry in earlier:
        text = files.read_text(_deprecated_path(entry["contractVersion"]))
        if text is not None and entry["readableUntil"] not in text:
            _deprecate(OpenDataContractStandard.from_string(text), files, entry["readableUntil"])


def _write(
    contract: OpenDataContractStandard,
    files: TableFiles,
    version: str,
    earlier: list[dict[str, Any]],
    now: dt.datetime,
) -> OpenDataContractStandard:
    versioned = {"version": version, "contractCreatedTs": f"{now:%Y-%m-%dT%H:%M:%SZ}"}
    contract = _with_earlier_spaces(contract, earlier).model_copy(update=versioned)
    files.write_text(PAGE, _render(contract, earlier))
    files.write_text(CONTRACT, contract.to_yaml())
    return contract


def _render(contract: OpenDataContractStandard, earlier: list[dict[str, Any]]) -> str:
    """Return the contract as a Markdown page."""
    (table,) = contract.schema_ or []
    return _template().render(
        contract=contract,
        table=table,
        units={str(column.name): unit_of(column) for column in table.properties or []},
        earlier=earlier,
        latent_space=_custom_property(contract, "latentSpace"),
        latent_axes=_custom_property(contract, "latentAxes"),
        model_version=_custom_property(contract, "modelVersion"),
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ae_pipeline.latents", "."),
        autoescape=False,  # noqa: S701 - the page is Markdown, and its texts come from the owner's YAML
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["without_html"] = without_html
    return environment.get_template("contract.md.j2")
