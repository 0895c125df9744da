import hashlib
import io
import random

from made_text import document

from harness.tasks.pile import arithmetic, corpora
from harness.tasks.pile.wikitext import plain_text

WIKITEXT = """{{Infobox lake | name = Otter Mere | depth = {{convert|3|m}} }}
<!-- an editor's note -->
'''Otter Mere''' is a [[lake]] in [[Vale County|the Vale]].<ref name="a">A. Writer, ''Lakes''.</ref><ref name="b" />
[[File:mere.jpg|thumb|The [[shore]] in {{circa|1900}}]]
It drains&nbsp;into the [[River Ott]] ({{lang|xx|Ott}}), see [http://example.org/map the map].

{| class="wikitable"
|-
| a cell {| nested
|}
|}
== Wildlife ==
* [[Otter]]s and ''voles''
* pike<br />perch

=== Fish ===
Pike &amp; perch.

== References ==
{{reflist}}

=== Books ===
A. Writer

== Access ==
By boat.

[[Category:Lakes]]
[[de:Ottersee]]
"""


def test_wikitext_becomes_paragraphs_and_headings():
    assert plain_text(WIKITEXT) == (
        "Otter Mere is a lake in the Vale.\n\nIt drains into the River Ott, see the map.\n\n"
        "Wildlife\n\nOtters and voles\npike\nperch\n\nFish\n\nPike & perch.\n\nAccess\n\nBy boat."
    )


def test_unbalanced_wikitext_loses_its_braces_and_no_prose():
    assert plain_text("Before {{open and [[half a link, then }} closed }} after.") == (
        "Before  closed  after.".replace("  ", " ")
    )
    assert plain_text("A }} b {{ c") == "A b c"


def test_redirects_and_other_namespaces_are_no_articles():
    def page(title, ns, body, extra=""):
        return f"<page><title>{title}</title><ns>{ns}</ns>{extra}<revision><text>{body}</text></revision></page>"

    export = (
        '<mediawiki xmlns="urn:made">'
        + page("Otter", 0, "An '''otter'''.")
        + page("Otters", 0, "#REDIRECT [[Otter]]", '<redirect title="Otter" />')
        + page("Talk:Otter", 1, "Chatter")
        + "</mediawiki>"
    )
    assert list(corpora.wiki_pages(export.encode())) == [("Otter", "Otter\n\nAn otter.")]


def test_bible_chapters_are_cut_from_the_source_without_running_it():
    verses = {1001001: "First. ", 1001002: "Second.\n", 1002001: "Third. ", 1009001: "Ninth.", 2001001: "Next book."}
    text, starts, ends = "", {}, {}
    for number, verse in verses.items():
        starts[number] = len(text)
        text += verse
        ends[number] = len(text)
    source = f"import nothing_that_exists\nbible = Bible(Version.MADE, {text!r}, {starts!r}, {ends!r})\n"
    assert list(corpora.bible_chapters(source)) == [
        ("book-01/00", "First. Second.\n\nThird."),
        ("book-01/01", "Ninth."),
        ("book-02/00", "Next book."),
    ]


def test_source_files_are_capped_by_a_hash_and_short_ones_left_out(tmp_path, make_archive):
    files = {f"made/m{i:02d}.py": f"x = {i}\n".ljust(1500, "#") for i in range(20)} | {"made/short.py": "x = 1"}
    make_archive("made-code", files)
    path = tmp_path / "index" / "made_code-1.0-py3-none-any.whl"
    everything = list(corpora.text_files(r"made/.*\.py")(path))
    capped = list(corpora.text_files(r"made/.*\.py", cap=15_000)(path))
    assert len(everything) == 20
    assert len(capped) == 10
    assert capped == sorted(capped)
    assert capped != everything[:10]


def test_the_split_depends_on_the_name_of_a_document_and_not_on_the_order():
    documents = [document(number) for number in range(4000)]
    splits = {d["meta"]["id"]: corpora.split_of(d, 0) for d in documents}
    random.Random(1).shuffle(documents)
    assert {d["meta"]["id"]: corpora.split_of(d, 0) for d in documents} == splits
    counts = {split: list(splits.values()).count(split) for split in corpora.SPLITS}
    assert 3500 < counts["train"] < 3700
    assert 150 < counts["validation"] < 250
    assert 150 < counts["test"] < 250


def test_another_seed_draws_another_split():
    documents = [document(number) for number in range(400)]
    assert [corpora.split_of(d, 0) for d in documents] != [corpora.split_of(d, 1) for d in documents]


def test_the_arithmetic_questions_never_change():
    text = "\0".join(f"{name}\0{body}" for name, body in arithmetic.documents())
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "5107bab5bfae8097e907e226d5f370a0bb9f1ffc608e087b344ff6374279b9ab"
    )


def test_the_answers_of_arithmetic_questions_are_right():
    for name, text in arithmetic.documents():
        lines = text.split("\n")
        for question, answer in zip(lines[::2], lines[1::2], strict=True):
            if name.startswith("sum/"):
                assert eval(question.removeprefix("What is ").rstrip("?")) == int(answer)
            if name.startswith("remainder/"):
                a, b = (int(word) for word in question.rstrip(".").split() if word.isdigit())
                assert a % b == int(answer)
            if name.startswith("equation/"):
                equation, _, unknown = question.removeprefix("Solve ").rstrip(".").partition(" for ")
                assert eval(equation.replace("=", "=="), {unknown: int(answer)})


def test_documents_of_missing_archives_are_left_out_and_the_rest_stays():
    sources = corpora.mini_sources(permissive=False, documentation=False)
    documents = list(corpora.mini_documents(sources, {}))
    assert {d["meta"]["pile_set_name"] for d in documents} == {"mini:DMMath"}
    assert len({d["meta"]["id"] for d in documents}) == len(documents) == 240


def test_line_ends_of_source_files_are_unix(tmp_path, make_archive):
    make_archive("made-crlf", {"made/a.py": "x = 1\r\n" * 300})
    path = tmp_path / "index" / "made_crlf-1.0-py3-none-any.whl"
    (_, text), *_ = corpora.text_files(r"made/.*\.py")(path)
    assert "\r" not in io.StringIO(text, newline="").read()
