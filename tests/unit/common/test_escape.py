"""Hostile names and values in each place that shows them: they stay text."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import pytest
from markdown_it import MarkdownIt

from ae_pipeline.common.escape import (
    escape_json_in_html,
    escape_markdown,
    spreadsheet_text,
    terminal_line,
    terminal_lines,
    without_html,
)
from ae_pipeline.reports.markdown import markdown_table
from ae_pipeline.reports.page import page_environment

CONTROLS = [
    "\x1b[2J\x1b[H",
    "\x1b]0;title\x07",
    "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "\x1b[31mred\x1b[0m",
    "\x9b31m",
    "\x90q\x9c",
    "over\rwritten",
    "new\nline",
    "back\x08\x08space",
    "bell\x07",
    "delete\x7f",
    "null\x00",
    "tab\tseparated",
    "vertical\x0b\x0c",
    "next\x85line",
    "line\u2028separator\u2029",
    "user\u202etxt.exe",
    "iso\u2066late\u2069",
    "embed\u202ading\u202c",
]
MARKDOWN = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!-- comment",
    "<a href='javascript:alert(1)'>x</a>",
    "[x](javascript:alert(1))",
    "![x](http://evil.example/pixel.png)",
    "[x]: http://evil.example",
    "[x][y]",
    "<http://evil.example>",
    "http://evil.example/path",
    "HTTPS://evil.example",
    "www.evil.example",
    "someone@evil.example",
    "# heading",
    "#heading",
    "- item",
    "+ item",
    "* item",
    "1. item",
    "2) item",
    "> quote",
    "---",
    "===",
    "***",
    "___",
    "    code",
    "\tcode",
    "`code`",
    "```",
    "~~~",
    "a | b",
    "a \\| b",
    "|",
    "**bold** _em_ __strong__ ~~gone~~",
    "&lt;b&gt; &amp; &#60;",
    "\\",
    "a\\",
    "text\n\n# heading",
    "text\n---",
    "text\n| a |\n| - |",
    "$x$ {{ x }} {% x %} :smile:",
]
FORMULAS = [
    "=1+1",
    "+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "\uff1d1",
    "=cmd|' /C calc'!A0",
    '=HYPERLINK("x")',
]
PLAIN = [
    "order 7",
    "Müller & Söhne",
    "a_b_c",
    "2024-01-01T00:00:00Z",
    "日本語",
    "👩‍👩‍👧",
    "x|y",
    "3.5",
    "עברית",
    "-3",
    "1.5",
]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(html: str) -> _Tags:
    tags = _Tags()
    tags.feed(html)
    tags.close()
    return tags


class TestTerminal:
    @pytest.mark.parametrize("text", CONTROLS)
    def test_no_control_reaches_it(self, text: str) -> None:
        shown = terminal_line(text)
        assert shown.isprintable()
        assert "\\" in shown
        assert [each for each in text if each not in shown] == [each for each in text if not each.isprintable()]

    @pytest.mark.parametrize("text", PLAIN)
    def test_other_characters_are_unchanged(self, text: str) -> None:
        assert terminal_line(text) == terminal_lines(text) == text

    def test_lines_of_a_message_are_kept(self) -> None:
        assert terminal_lines("a\x1b\nb") == "a\\x1b\nb"

    def test_a_surrogate_can_be_printed(self) -> None:
        assert terminal_line("file \udcff").encode() == b"file \\udcff"


class TestMarkdown:
    @pytest.mark.parametrize("text", [*CONTROLS, *MARKDOWN, *FORMULAS, *PLAIN])
    def test_a_value_is_a_paragraph_of_text(self, text: str) -> None:
        page = parsed(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(escape_markdown(text)))
        assert page.tags == ["p"]
        assert page.text.strip() == terminal_line(re.sub(r"[ \t\n\r\x0b\x0c]+", " ", text)).strip()

    @pytest.mark.parametrize("text", [*CONTROLS, *MARKDOWN, *FORMULAS, *PLAIN])
    def test_a_value_is_one_cell_of_a_table(self, text: str) -> None:
        source = markdown_table(["name", "value"], [[text, text], ["last", "row"]])
        page = parsed(MarkdownIt("commonmark").enable("table").render(source))
        table = ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td", "tr", "td", "td"]
        assert page.tags == table

    @pytest.mark.parametrize("text", ["http://e.x", "HTTPS://e.x", "ftp://e.x", "www.e.x", "WWW.e.x", "a@e.x"])
    def test_an_address_does_not_become_a_link(self, text: str) -> None:
        """GitHub's Markdown, which both web UIs use, links these as they stand."""
        assert not re.search(r"(?i)(https?|ftp)://|www\.|[^\\]@", escape_markdown(f"see {text} there"))

    def test_a_description_keeps_its_markdown_but_no_html(self) -> None:
        page = parsed(MarkdownIt("commonmark").render(without_html("*all* <script>x</script> <img src=y>")))
        assert page.tags == ["p", "em"]


class TestPages:
    @pytest.mark.parametrize("text", [*CONTROLS, *MARKDOWN, *FORMULAS])
    def test_a_value_is_text_in_html(self, text: str) -> None:
        template = page_environment().from_string('<td title="{{ x }}">{{ x }}</td>')
        page = parsed(template.render(x=text.replace("\x00", "")))
        assert page.tags == ["td"]

    @pytest.mark.parametrize("text", ["</script><script>alert(1)</script>", "<!--<script>", "\u2028", "]]>", *MARKDOWN])
    def test_a_value_stays_in_the_json_of_a_chart(self, text: str) -> None:
        source = json.dumps({"row": text}, ensure_ascii=False)
        page = parsed(page_environment().from_string("<script>{{ x|in_script }}</script><p>").render(x=source))
        assert page.tags == ["script", "p"]
        assert json.loads(escape_json_in_html(source)) == {"row": text}

    def test_every_template_escapes_by_itself(self) -> None:
        assert page_environment().autoescape is True
        folder = Path(__file__).parents[3] / "ae_pipeline" / "reports"
        safe = [line for page in folder.glob("*.html.j2") for line in page.read_text().splitlines() if "|safe" in line]
        assert len(safe) == 3
        for line in safe:  # constants only
            assert set(re.findall(r"\{\{[^}]*\|safe[^}]*\}\}", line)) <= {
                "{{ ' class=\"wrong\"'|safe if entry.words }}",
                "{{ ' class=\"over\"'|safe if entry.is_over }}",
                "{{ ' class=\"flag\"'|safe if not each.passed }}",
            }

    def test_jinja_escapes_attributes(self) -> None:
        rendered = jinja2.Environment(autoescape=True).from_string('<a title="{{ x }}">').render(x='"><b>')
        assert parsed(rendered).tags == ["a"]


class TestSpreadsheets:
    @pytest.mark.parametrize("text", FORMULAS)
    def test_a_formula_is_text(self, text: str) -> None:
        file = io.StringIO(newline="")
        csv.writer(file).writerow([spreadsheet_text(text)])
        file.seek(0)
        ((cell,),) = csv.reader(file)
        assert cell == f"'{text}"

    @pytest.mark.parametrize("text", [each for each in PLAIN if not each.startswith("-")])
    def test_other_text_is_unchanged(self, text: str) -> None:
        assert spreadsheet_text(text) == text
