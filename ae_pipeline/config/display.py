"""How messages and pages name columns and their values."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ae_pipeline.config.columns import ColumnDisplay


@dataclass(frozen=True)
class ColumnNames:
    """Titles and units of columns, for people. Files and commands have the names of the data.

    Attributes:
        display: Title and unit of each column that has one.

    Examples:
        >>> names = ColumnNames({"arr_delay": ColumnDisplay(title="arrival delay", unit="minutes")})
        >>> names.label("arr_delay"), names.label("carrier")
        ('arrival delay (minutes)', 'carrier')
        >>> names.with_unit("arr_delay", "38"), names.with_unit("arr_delay", "missing")
        ('38 minutes', 'missing')
    """

    display: Mapping[str, ColumnDisplay] = field(default_factory=dict)

    @cached_property
    def _uses(self) -> Counter[str]:
        return Counter([*(each.title for each in self.display.values() if each.title), *self.display])

    def title(self, column: str) -> str:
        """Return the title of a column, or its name; both if another column has the same title."""
        title = self.display[column].title if column in self.display else None
        if title is None or title == column:
            return column
        return title if self._uses[title] == 1 else f"{title} ({column})"

    def label(self, column: str) -> str:
        """Return the title of a column with its unit."""
        unit = self.display[column].unit if column in self.display else None
        return f"{self.title(column)} ({unit})" if unit else self.title(column)

    def with_unit(self, column: str, value: str) -> str:
        """Return a number with the unit of its column. Other values stay as they are, such as a clock or `missing`."""
        unit = self.display[column].unit if column in self.display else None
        return f"{value} {unit}" if unit and _is_number(value) else value


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return any(character.isdigit() for character in text)  # not "nan" or "inf"


PLAIN = ColumnNames()
"""Columns under the names of the data, without units."""
