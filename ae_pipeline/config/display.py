"""How messages and pages name columns and their values."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ae_pipeline.config.columns import ColumnDisplay

_TITLES = {"event_time": "event time", "row_id": "row"}
"""Titles of the columns that the pipeline itself adds."""

_COMBINATION = "categories"
"""Part of a score that is a combination of categories; its text names columns and values."""

_EXPECTED = re.compile(r"(?P<value>.+?)(?P<share> \([0-9]+%\))(?P<rest> or |\)?$)")
"""A category that a model expects, such as `AA (61%) or UA (30%)`."""

_MISSING = re.compile(r"(missing \(else )(.+)\)")


@dataclass(frozen=True)
class ColumnNames:
    """Titles and units of columns and names of values, for people. Files and commands have those of the data.

    Attributes:
        display: Title, unit and codes of each column that has one.

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

    @cached_property
    def _uses(self) -> Counter[str]:
        return Counter([*(each.title for each in self.display.values() if each.title), *self.display])

    def title(self, column: str) -> str:
        """Return the title of a column, or its name; both if another column has the same title."""
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

    def value(self, column: str, text: str) -> str:
        """Return a value of a column as pages show it: a number with its unit, a category under its name.

        Other texts stay as they are, such as a clock or `missing`.

        Args:
            column: Name of the column, or the part of a score that the text is about.
            text: Actual or expected value, as explanations have it.
        """
        if column == _COMBINATION and column not in self.display:
            return self._combination(text)
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
        """Return the name of a stored value; with the value if another one has the same name."""
        codes = self.display[column].codes
        name = codes.get(value, value)
        return name if list(codes.values()).count(name) < 2 else f"{name} ({value})"

    def _combination(self, text: str) -> str:
        """Return the description of a combination of categories with titles and names of values."""
        combination, separator, counts = text.rpartition(": ")
        parts = []
        for part in combination.split(" × "):
            columns = [column for column in self.display if part.startswith(f"{column} ")]
            column = max(columns, key=len, default="")
            value = part.removeprefix(f"{column} ")
            parts.append(f"{self.title(column)} {self.value(column, value)}" if column else part)
        return " × ".join(parts) + separator + counts


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return any(character.isdigit() for character in text)  # not "nan" or "inf"


PLAIN = ColumnNames()
"""Columns under the names of the data, without units."""
