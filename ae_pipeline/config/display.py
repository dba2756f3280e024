"""How messages and pages name columns and their values."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ae_pipeline.common.text import plural, pluralize
from ae_pipeline.config.columns import ColumnDisplay
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.service import Evidence

_TITLES = {"event_time": "event time", "row_id": "row"}
"""Titles of the columns that the pipeline itself adds."""

Category = tuple[str, str]
"""Column and value of a category."""

_EXPECTED = re.compile(r"(?P<value>.+?)(?P<share> \([0-9]+%\))(?P<rest> or |\)?$)")
"""A category that a model expects, such as `AA (61%) or UA (30%)`."""

_MISSING = re.compile(r"(missing \(else )(.+)\)")


@dataclass(frozen=True)
class ColumnNames:
    """Titles and units of columns and names of values, for people. Files and commands have those of the data.

    Attributes:
        display: Title, unit and codes of each column that has one.
        columns: All columns of the dataset, as far as they are known: a title that is the name of another column does
            not stand alone.
        row: What a row is called, as `noun_of_rows` says.

    Examples:
        >>> delay = ColumnDisplay(title="arrival delay", unit="minutes")
        >>> names = ColumnNames({"arr_delay": delay, "carrier": ColumnDisplay(codes={"AA": "American Airlines"})})
        >>> names.label("arr_delay"), names.label("carrier")
        ('arrival delay (minutes)', 'carrier')
        >>> names.value("arr_delay", "38"), names.value("arr_delay", "missing (else 12)")
        ('38 minutes', 'missing (else 12 minutes)')
        >>> names.value("carrier", "AA (61%) or UA (30%)")
        'American Airlines (61%) or UA (30%)'
    """

    display: Mapping[str, ColumnDisplay] = field(default_factory=dict)
    columns: Collection[str] = ()
    row: str = "row"

    @property
    def rows(self) -> str:
        """What rows are called."""
        return plural(self.row)

    @cached_property
    def _uses(self) -> Counter[str]:
        """How many columns and parts of a score have each name or title."""
        of_pipeline = {title for column, title in _TITLES.items() if column not in self.display}
        names = {*self.display, *self.columns, *of_pipeline, *map(str, Evidence)}
        titles = (each.title for name, each in self.display.items() if each.title and each.title != name)
        return Counter([*titles, *names])

    def title(self, column: str) -> str:
        """Return the title of a column, or its name; both if another column has this title or name."""
        title = self.display[column].title if column in self.display else None
        if title is None or title == column:
            return _TITLES.get(column, column)
        return title if self._uses[title] == 1 else f"{title} ({column})"

    @staticmethod
    def latent(column: str) -> str:
        """Return the title of a column of the latent table: `z_003` is latent 3. Others keep their name.

        >>> ColumnNames.latent("z_003"), ColumnNames.latent("score")
        ('latent 3', 'score')
        """
        number = column.removeprefix("z_")
        return f"latent {int(number)}" if number != column and number.isdecimal() else column

    def label(self, column: str) -> str:
        """Return the title of a column with its unit."""
        unit = self.display[column].unit if column in self.display else None
        return f"{self.title(column)} ({unit})" if unit else self.title(column)

    def value(self, column: str, text: str, categories: Sequence[Category] = ()) -> str:
        """Return a value of a column as pages show it: a number with its unit, a category under its name.

        Other texts stay as they are, such as a clock or `missing`.

        Args:
            column: Name of the column, or the part of a score that the text is about.
            text: Actual or expected value, as explanations have it.
            categories: Columns and values of the combination that the text starts with; empty for other texts.
        """
        if categories:
            shown = combination([(self.title(name), self.value(name, value)) for name, value in categories])
            return shown + text.removeprefix(combination(categories))
        display = self.display.get(column)
        if display is None or not (display.unit or display.codes):
            return text
        if is_missing := _MISSING.fullmatch(text):
            return f"{is_missing[1]}{self.value(column, is_missing[2])})"
        if display.codes:
            plain = text.replace(",", "") if _is_number(text) else text
            if code := next((each for each in (text, plain) if each in display.codes), None):
                return self._name(column, code)
            text = _EXPECTED.sub(lambda each: self._name(column, each["value"]) + each["share"] + each["rest"], text)
        return f"{text} {display.unit}" if _is_number(text) else text

    def _name(self, column: str, value: str) -> str:
        """Return the name of a stored value; with the value if another code has this name, or is this name."""
        codes = self.display[column].codes
        name = codes.get(value, value)
        is_unique = list(codes.values()).count(name) < 2 and (name == value or name not in codes)
        return name if is_unique else f"{name} ({value})"


def noun_of_rows(config: PipelineConfig) -> str:
    """Return what messages and pages call a row: a patch or an image, if rows are such."""
    if config.images is None:
        return "row"
    return "patch" if config.images.patch else "image"


def count_rejected(count: int, config: PipelineConfig) -> str:
    """Return the number of rows in quarantine as text. An image that cannot be cut into patches is one of them.

    Args:
        count: The number.
        config: Configuration of the dataset.
    """
    noun = noun_of_rows(config)
    return f"{pluralize(count, noun)}{(' or image' if count == 1 else ' or images') if noun == 'patch' else ''}"


def combination(categories: Sequence[Category]) -> str:
    """Return a combination of categories as text.

    >>> combination([("carrier", "9E"), ("dest", "HNL")])
    'carrier 9E × dest HNL'
    """
    return " × ".join(f"{column} {value}" for column, value in categories)


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return any(character.isdigit() for character in text)  # not "nan" or "inf"


PLAIN = ColumnNames()
"""Columns under the names of the data, without units."""
