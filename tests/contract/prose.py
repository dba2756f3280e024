"""Find long sentences, passive voice and unclear phrases in the text of this repository.

Run it over Markdown, Python, YAML or Jinja files: ``python tests/contract/prose.py README.md ae_pipeline``.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

MAX_SENTENCE_WORDS = 30
"""Words that a sentence may have."""

MAX_MEAN_WORDS = 16
"""Words that the sentences of a page may have on average."""

MAX_PASSIVE_SHARE = 0.4
"""Share of the sentences of a page that may be in the passive voice."""

MIN_SENTENCES = 10
"""Sentences that a page needs for a check of its mean and its share."""

WORDINGS = {
    r"(?:is|are|was|were|be|been) told": "receives, shows, or name who says what to whom",
    r"told (?:of|apart)": "reported, distinguished",
    r"tells? (?:of|whether|which|how|what|apart|where)": "shows, reports, distinguishes",
    r"says? (?:of|what is so)|(?-i:Says|Gives|Tells) (?:whether|which|how|where|the|a|what)": "Return, state, show",
    r"gives? back": "returns",
    r"what it came to|what came of it|came to nothing|what became of": "the result, the outcome",
    r"whoever|whosoever|whatever (?:is|has|was)": "name the person or the thing",
    r"thereof|therein|thereby|wherein|whereby|whereof|hereby|herein": "of it, in it, by which",
    r"likewise": "in the same way, also",
    r"anew|afresh|once more": "again",
    r"of before|of now|of today": "previous, current, today's",
    r"held against|holds? (?:\w+ ){1,3}against|hold against": "compared with, checked against, validated with",
    r"held beside|stands? beside|set beside": "compared with, is next to",
    r"mend|mends|mended|mending": "fix, correct, repair",
    r"bears|bear": "has, contains, carries",
    r"stands in|stands? there|stands? at|stands? for (?:a|the) day": "is in, is at, means",
    r"where there is (?:one|none)|none where|which ones there are": "if one exists, None if there is none",
    r"a (?:line|row|file|step|day|page) each|each a line": "one line per item",
    r"so that (?:\w+ )?may": "so that … can",
    r"strangest|stranger|strange": "most anomalous, highest-scoring, unusual",
    r"swept|sweeps": "vacuumed, removed",
    r"taken over|takes over|take over": "promoted, is promoted",
    r"without a hand|by a hand": "automatically, manually",
    r"come(?:s)? true|come(?:s)? to stand|come(?:s)? by": "say what happens",
    r"for want of|lest|albeit|whence|thence": "plain words: without, so that … not, although, so",
    r"for ever|by and by|as it were": "plain words: forever, soon, so to speak",
    r"is none of|are none of": "is not one of",
    r"in order to": "to",
    r"due to the fact that": "because",
    r"make use of|makes use of|utili[sz]e[sd]?": "use",
    r"prior to": "before",
    r"with (?:regard|respect) to": "about, for",
    r"a (?:large|small) number of": "many, few",
    r"has the ability to|is able to": "can",
}
"""Patterns of phrases to avoid, each with its replacement."""

_WORDINGS = [(re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE), remedy) for pattern, remedy in WORDINGS.items()]

_IRREGULAR = (
    "bound built bought brought chosen cut done drawn driven fed found given held hidden kept known laid led left lost "
    "made meant met paid put read run said seen sent set shown shut sold spent split spread taken thrown told trod "
    "understood won worn written"
)
_PASSIVE = re.compile(
    rf"\b(?:is|are|was|were|be|been|being)\s+(?:(?:\w+ly|not|never|yet|often|always|also|still|only|then)\s+){{0,2}}"
    rf"(?:\w+ed|{_IRREGULAR.replace(' ', '|')})\b",
    re.IGNORECASE,
)

_SENTENCE_END = re.compile(r"(?<=[.!?…])(?<!e\.g\.)(?<!i\.e\.)(?<!vs\.)[\"”)]*\s+(?=[\"“(]?[A-Z0-9`])")

_MARKDOWN = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Block:
    """A paragraph, list item, heading or table cell.

    Attributes:
        line: Number of its first line, from 1.
        text: Its text without markup; each inline code is one word.
        is_running: Whether it consists of sentences. Headings and table cells do not.
    """

    line: int
    text: str
    is_running: bool

    @property
    def sentences(self) -> list[str]:
        """Sentences of running text."""
        return [part for part in _SENTENCE_END.split(self.text) if words_of(part)] if self.is_running else []


def words_of(text: str) -> list[str]:
    """Split text into words; dashes and bare punctuation are not words."""
    return [word for word in text.split() if re.search(r"\w", word)]


def blocks_of(markdown: str) -> list[Block]:
    """Return the text blocks of a Markdown page, without code blocks, images, and addresses of links."""
    blocks, stack, line = [], [""], 0
    for token in _MARKDOWN.parse(re.sub(r"^(!!!|\?\?\?).*$", "", markdown, flags=re.MULTILINE)):
        if token.nesting == 1:
            stack.append(token.type)
        elif token.nesting == -1:
            stack.pop()
        if token.map:
            line = token.map[0] + 1
        if token.type == "inline":
            blocks.append(Block(line, _plain(token).strip(), stack[-1] == "paragraph_open"))
    return [block for block in blocks if block.text]


def _plain(inline: Token) -> str:
    parts = []
    for child in inline.children or []:
        match child.type:
            case "text":
                parts.append(child.content)
            case "code_inline":
                parts.append("`" + re.sub(r"\s+", "_", child.content) + "`")
            case "softbreak" | "hardbreak":
                parts.append(" ")
    return "".join(parts)


def wording_problems(text: str) -> Iterator[tuple[int, str]]:
    """Yield the position of each phrase to avoid, with a message that names the replacement."""
    for pattern, remedy in _WORDINGS:
        for match in pattern.finditer(text):
            yield match.start(), f"{match.group(0)!r}: write {remedy}"


def page_problems(markdown: str) -> list[str]:
    """Return one message per violation on a Markdown page."""
    blocks = blocks_of(markdown)
    problems = []
    for block in blocks:
        without_code = re.sub(r"`[^`]*`", "`code`", block.text)
        problems += [f"{block.line}: {message}" for _, message in wording_problems(without_code)]
        problems += [
            f"{block.line}: a sentence has {len(words_of(sentence))} words, at most {MAX_SENTENCE_WORDS} are allowed; "
            f"split it: {sentence[:60]}…"
            for sentence in block.sentences
            if len(words_of(sentence)) > MAX_SENTENCE_WORDS
        ]
    sentences = [sentence for block in blocks for sentence in block.sentences]
    if len(sentences) < MIN_SENTENCES:
        return problems
    if (mean := mean_length(sentences)) > MAX_MEAN_WORDS:
        problems.append(f"1: sentences have {mean:.1f} words on average, at most {MAX_MEAN_WORDS} are allowed")
    if (share := passive_share(sentences)) > MAX_PASSIVE_SHARE:
        problems.append(f"1: {share:.0%} of the sentences are passive, at most {MAX_PASSIVE_SHARE:.0%} are allowed")
    return problems


def mean_length(sentences: Sequence[str]) -> float:
    """Return the mean number of words of sentences."""
    return sum(len(words_of(sentence)) for sentence in sentences) / len(sentences)


def passive_share(sentences: Sequence[str]) -> float:
    """Return the share of sentences with a passive verb."""
    return sum(bool(_PASSIVE.search(sentence)) for sentence in sentences) / len(sentences)


def source_problems(path: Path) -> list[str]:
    """Return the phrases to avoid in the comments and texts of a Python file, or anywhere in another text file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return [f"{text.count(chr(10), 0, start) + 1}: {message}" for start, message in wording_problems(text)]
    parts = [
        (token.start[0], token.string)
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    ]
    parts += [
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return [
        f"{line + part.count(chr(10), 0, start)}: {message}"
        for line, part in sorted(parts)
        for start, message in wording_problems(part)
    ]


def problems_of(path: Path) -> list[str]:
    """Return one message per violation in a file."""
    return page_problems(path.read_text(encoding="utf-8")) if path.suffix == ".md" else source_problems(path)


def main(paths: Sequence[str]) -> int:
    """Print the violations in files and folders; return 1 if there are any."""
    suffixes = {".md", ".py", ".j2", ".yaml"}
    files = [
        file
        for path in map(Path, paths)
        for file in (sorted(f for f in path.rglob("*") if f.suffix in suffixes) if path.is_dir() else [path])
    ]
    problems = [f"{file}:{problem}" for file in files for problem in problems_of(file)]
    print("\n".join([*problems, f"{len(problems)} violations in {len(files)} files"]))  # noqa: T201
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
