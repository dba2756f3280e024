"""The documentation is short and in plain English; `prose.py` contains the rules."""

from pathlib import Path

import pytest

from tests.contract import prose

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_in_plain_english(page: Path) -> None:
    assert prose.page_problems(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(("name", "limit"), [("README.md", 150), ("ARCHITECTURE.md", 120)])
def test_a_page_has_few_lines(name: str, limit: int) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= limit


def test_the_readme_has_few_words() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1_100


class TestRules:
    PAGE = """# Head of `three` words, which are no sentence

One sentence here. Another one, e.g. with `code of many words` and a [link](address), is here!

- An item is
  one sentence.

| head | cell |
| --- | --- |
| anew | x |

```console
$ this is told to nobody
```
"""

    def test_code_blocks_tables_and_headings_are_not_sentences(self) -> None:
        sentences = [sentence for block in prose.blocks_of(self.PAGE) for sentence in block.sentences]
        assert [len(prose.words_of(sentence)) for sentence in sentences] == [3, 10, 5]
        assert prose.mean_length(sentences) == pytest.approx(6)

    def test_a_phrase_to_avoid_is_found_in_a_table_and_not_in_code(self) -> None:
        assert prose.page_problems(self.PAGE) == ["10: 'anew': write again"]

    def test_a_long_sentence_is_found(self) -> None:
        (long,) = prose.page_problems(f"First line.\n\n{'word ' * 30}end.\n")
        assert long.startswith("3: a sentence has 31 words")

    @pytest.mark.parametrize(("count", "expected"), [(10, 1), (9, 0)])
    def test_a_high_mean_is_found_on_a_page_of_ten_sentences(self, count: int, expected: int) -> None:
        problems = prose.page_problems(f"{'word ' * 16}end.\n\n" * count)
        assert problems == ["1: sentences have 17.0 words on average, at most 16 are allowed"] * expected

    def test_many_passive_sentences_are_found(self) -> None:
        active, passive = "A sensor reads it.\n\n", "It is read.\n\n"
        assert prose.page_problems(active * 6 + passive * 4) == []
        assert prose.page_problems(active * 5 + passive * 5) == [
            "1: 50% of the sentences are passive, at most 40% are allowed"
        ]

    def test_the_passive_voice_is_counted_by_sentences(self) -> None:
        sentences = ["The file is read.", "It was not yet written.", "A sensor reads it.", "It is often retried."]
        assert prose.passive_share(sentences) == pytest.approx(0.75)

    def test_names_in_a_python_file_are_not_checked(self, tmp_path: Path) -> None:
        file = tmp_path / "module.py"
        file.write_text('"""Fit\n\nanew."""\n\nanew = 1  # whoever\nraise ValueError(f"{anew} mend it")\n')
        assert prose.problems_of(file) == [
            "3: 'anew': write again",
            "5: 'whoever': write name the person or the thing",
            "6: 'mend': write fix, correct, repair",
        ]

    def test_the_command_fails_with_one_line_per_violation(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "page.md").write_text("It is told anew.\n")
        assert prose.main([str(tmp_path)]) == 1
        assert capsys.readouterr().out.splitlines()[-1] == "2 violations in 1 files"
        (tmp_path / "page.md").write_text("Say it again.\n")
        assert prose.main([str(tmp_path)]) == 0
