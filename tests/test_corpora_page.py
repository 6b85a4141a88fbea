"""The page of corpora says of each what the table in code says."""

from pathlib import Path

import pytest

from pipelines.corpora.formats import FORMATS, settings
from pipelines.corpora.reading import KINDS, LOST, Note, findings
from pipelines.experiment import parse

PAGE = (Path(__file__).parent.parent / "docs/corpora.md").read_text()


def section(name):
    """What the page says of a format."""
    found = FORMATS[name]
    labels = ", ".join(f"`{label}` ({what})" for label, what in found.labels.items())
    streams = ", ".join(
        f"`{stream}` for `{'{'}{', '.join(f'{k}: {v}' for k, v in each.items())}{'}'}`"
        for stream, each in found.streams.items()
    )
    options = ", ".join(f"{key}: {each}" for key, each in settings(found.options()).items())
    lines = [
        f"### {found.title}: `{name}`",
        "",
        f"    fuseline ingest DIR --format {name}",
        "",
        *(f"    DIR/.../{line}" for line in found.layout),
        "",
        f"- Ask: {found.ask}",
        f"- Licence: {found.licence}",
        f"- Labels: {labels}",
        f"- Split: {found.splits}",
        *([f"- Streams: {streams}"] if streams else []),
        *([f"- Known defects: {found.defects}"] if found.defects else []),
        f"- Options: `{'{'}{options}{'}'}`" if options else "- Options: none",
        f"- Built from: {found.built_from}",
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", FORMATS)
def test_the_page_has_the_section_of_each_corpus(name):
    assert section(name) in PAGE


def test_the_page_has_no_other_corpus():
    told = [line for line in PAGE.splitlines() if line.startswith("### ")]
    assert told == [f"### {found.title}: `{name}`" for name, found in FORMATS.items()]


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_makes_an_experiment_with_its_usual_label(name):
    source = {"folder": "here", "format": name}
    made = parse({"dataset": "data", "source": source}, Path("here"))
    assert made.source.label == next(iter(FORMATS[name].labels))


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_explains_each_kind_of_note(kind):
    lost = "yes" if kind in LOST else "no"
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{kind}` |"))
    assert row.endswith(f"| {lost} |")
    (said,) = findings([Note(kind=kind, file="a", row=3, message="b")] * 4)
    assert said.found == "4: a, row 3: b; a, row 3: b; a, row 3: b and 1 more"
    assert said.state == ("failed" if kind in LOST else "warning")
