"""Text from models and files is escaped in every format, and the HTML file is self-contained."""

import re
from dataclasses import replace

import html5lib
import pytest
from helpers.scripted_records import failed, turn, write_run
from markdown_it import MarkdownIt

from specbench.report import html, markdown, samples
from specbench.report.blocks import Bullets, Heading, Paragraph, Sample, SampleAnswer, Terms, TextPiece
from specbench.report.compose import build
from specbench.util.terminal import Console
from specbench.util.text import TextTable, visible

EVIL = (
    "<script>alert(1)</script> <img src=x onerror=y> | `c` ``d`` ```e``` **b** *i* _u_ __v__ ~~s~~ [l](http://e.vil) ![p](http://e.vil/p) "
    "[r]: http://e.vil &amp; &lt; $m$ \\ \\begin{x} {{ 7*7 }} {% if %} \u202e \x00 \ud800 end"
)
LINES = [f"{start}{EVIL}" for start in ("", "# ", "> ", "- ", "1. ", "+ ", "=== ", "``` ", "| ", "[a]: ", "    ")]
LINES.append(f"a\n```\n{EVIL}\n````\n")
STRUCTURE = {"html", "head", "meta", "title", "style", "body", "main", "nav", "section", "div", "h1", "h2", "h3", "h4", "h5", "p"}
ELEMENTS = STRUCTURE | {"ul", "li", "dl", "dt", "dd", "a", "i", "b", "table", "caption", "thead", "tbody", "tr", "th", "td"}
ELEMENTS |= {"figure", "img", "figcaption", "span"}
ACCEPTED = {"vanilla": [0] * 12, "s4c": [2, 3, 1, 2]}


def elements(page):
    """Return every element of a page of valid HTML5; the strict parser raises at the first error."""
    tree = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page)
    return [each for each in tree.iter() if isinstance(each.tag, str)]


def flat(text):
    return " ".join(visible(text).split())


def blocks(line):
    """Return blocks with a line of hostile text in every field."""
    table = TextTable(line, [line, line], [[line, line], [line, "1"]])
    sample = Sample(
        line,
        line,
        [
            SampleAnswer(line, line, [TextPiece(line, 0, False)]),
            SampleAnswer(line, line, [TextPiece(line, 0, False), TextPiece(line, 1, True)]),
        ],
    )
    headings = [Heading(1, line), Heading(2, line), Heading(3, line)]
    return [*headings, Paragraph(line), Paragraph(line, warning=True), Bullets([line]), Terms([(line, line)]), table, sample]


@pytest.fixture(autouse=True)
def _no_tokenizer(monkeypatch):
    monkeypatch.setattr(samples, "target_decoder", lambda manifest: None)  # importing transformers takes seconds


@pytest.fixture
def evil_run(tmp_path):
    """Write a run in which every text from outside is hostile, as far as its files can hold it."""
    evil = EVIL.replace("\ud800", "")
    rows = [replace(turn(m, f"{q} {evil}", ACCEPTED[m], category=evil), output_text=f"{m} {evil}") for q in "ab" for m in ACCEPTED]
    return write_run(
        tmp_path / "run",
        [*rows, failed("s4c", f"c {evil}", category=evil, error=evil)],
        methods={"vanilla": f"V {evil}", "s4c": f"S {evil}"},
        suite={"categories": {evil: 2}},
        name=evil,
        environment={"python": evil, "cpu": evil, "threads": 2},
        target={"name": evil, "note": evil},
        settings={"suite": evil, "target": str(tmp_path / "none")},
    )


@pytest.mark.parametrize("line", LINES)
def test_hostile_text_is_text_in_html(line):
    found = elements(html.render(blocks(line)))
    assert {each.tag for each in found} <= ELEMENTS
    assert not [name for each in found for name in each.attrib if name.startswith("on")]
    texts = [
        flat("".join(each.itertext())) for each in found if each.tag in ("h1", "h2", "h3", "h4", "li", "dt", "dd", "td", "th", "caption")
    ]
    assert [text for text in texts if text not in ("1", flat(line))] == []
    assert flat(line + line) in [flat("".join(each.itertext())) for each in found if each.tag == "p"]


@pytest.mark.parametrize("line", LINES)
def test_hostile_text_is_text_in_markdown(line, tmp_path):
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    parsed = reader.parse(markdown.render(blocks(line), tmp_path))
    inner = [child for token in parsed for child in token.children or []]
    assert {token.type for token in inner} <= {"text", "text_special", "softbreak", "strong_open", "strong_close"}
    kinds = {token.type for token in parsed}
    assert not kinds & {"html_block", "blockquote_open", "ordered_list_open", "code_block", "hr"}
    assert [token.tag for token in parsed if token.type == "heading_open"] == ["h1", "h2", "h3", "h4"]
    texts = [" ".join("".join(child.content for child in token.children or []).split()) for token in parsed if token.type == "inline"]
    assert texts.count(flat(line)) == 3 + 1 + 1 + 5 + 1  # headings, paragraph, bullet, cells, the sample's title
    assert f"{flat(line)}:" in texts
    fences = [token.content for token in parsed if token.type == "fence"]
    assert [flat(text) for text in fences[:2]] == [flat(line)] * 2
    assert fences[2] == f"{visible(line)}{markdown.BAR}{visible(line)}\n"


@pytest.mark.figures
def test_a_hostile_run_in_every_format(evil_run, tmp_path):
    path = build([evil_run], tmp_path / "out", Console(record=True))
    found = elements(path.read_text(encoding="utf-8"))
    assert {each.tag for each in found} <= ELEMENTS
    assert flat(EVIL.replace("\ud800", "")) in flat("".join(found[0].itertext()))
    images = [each.attrib["src"] for each in found if each.tag == "img"]
    assert images
    assert all(source.startswith("data:image/svg+xml;base64,") for source in images)
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "<script" not in text.split("### Sample outputs")[0]
    (folder,) = (each for each in (tmp_path / "out").iterdir() if each.is_dir())
    tex = (folder / "tables.tex").read_text(encoding="utf-8")
    assert "\\begin{x}" not in tex
    assert re.search(r"(?<!\\)[$_#]", re.sub(r"\\label\{.*?\}", "", tex)) is None
    for svg in folder.glob("*.svg"):
        assert "\x00" not in svg.read_text(encoding="utf-8")


@pytest.mark.figures
def test_the_page_is_self_contained_readable_and_small(tmp_path):
    rows = [replace(turn(m, f"{i}", ACCEPTED[m] * 8, category=f"c{i % 6}"), output_text="word " * 60) for i in range(12) for m in ACCEPTED]
    methods = {"vanilla": "Vanilla", "s4c": "S4C"}
    run = write_run(
        tmp_path / "run", rows, methods=methods, suite={"categories": {f"c{i}": 2 for i in range(6)}}, settings={"target": "none"}
    )
    page = build([run], tmp_path / "out", Console(record=True)).read_text(encoding="utf-8")
    found = elements(page)
    by_tag = {tag: [each for each in found if each.tag == tag] for tag in ELEMENTS}
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert by_tag["title"][0].text == "specbench report"
    assert "width=device-width" in page
    assert "<script" not in page
    assert "javascript:" not in page
    assert not re.search(r"url\(|@import", by_tag["style"][0].text)
    for each in found:
        assert not each.attrib.keys() & {"srcset", "data", "poster", "action"}
        assert each.attrib.get("src", "data:").startswith("data:")
        assert each.attrib.get("href", "#").startswith("#")
    identities = [each.attrib["id"] for each in found if "id" in each.attrib]
    assert len(identities) == len(set(identities))
    assert {each.attrib["href"][1:] for each in by_tag["a"]} <= set(identities)
    assert all(each.attrib["alt"] for each in by_tag["img"])
    assert len(by_tag["img"]) == len(by_tag["figcaption"]) == 5
    assert len(by_tag["table"]) == len(by_tag["caption"])
    assert all(each.attrib.get("scope") in ("row", "col") for each in by_tag["th"])
    assert "prefers-color-scheme: dark" in page
    screen, paper = by_tag["style"][0].text.split("@media print")
    assert ".scroll { overflow-x: auto;" in screen
    assert "min-width: 40rem" in screen
    assert "th:first-child { position: sticky; left: 0;" in screen
    assert "tr, .answers > div { break-inside: avoid; }" in paper
    assert "size: A4 landscape" in paper
    assert "max-height: 9cm" in paper
    scrolled = [child.tag for each in found if each.attrib.get("class") == "scroll" for child in each]
    assert scrolled.count("img") == len(by_tag["img"])
    assert scrolled.count("table") == len(by_tag["table"])
    assert "figcaption" not in scrolled
    assert len(page.encode()) < 1_000_000


def test_latex_tables(tmp_path):
    rows = [turn(m, q, ACCEPTED[m], category=c) for q, c in (("a", "qa"), ("b", "rag")) for m in ACCEPTED]
    run = write_run(tmp_path / "first", rows, methods={"vanilla": "Vanilla", "s4c": "M_1 & 50 % ~^\\{$#"})
    build([run], tmp_path / "out", Console(record=True))
    text = (tmp_path / "out" / "first" / "tables.tex").read_text(encoding="utf-8")
    assert text.count("\\toprule") == text.count("\\bottomrule") == 3
    label = "M\\_1 \\& 50 \\% \\textasciitilde{}\\textasciicircum{}\\textbackslash{}\\{\\$\\# (reconstruction)"
    assert f"\n{label} & 1.66x {{[}}1.66, 1.66{{]}} & --- & " in text
    assert "\nMethod & QA & RAG & Overall \\\\\n" in text
    assert "suite mini" in text
