"""Pages: nothing from elsewhere, nothing that runs, nothing that cannot be read; equal bytes."""

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import pytest
from jinja2 import UndefinedError

from pipelines.pages import Table, plots, printable, render, units
from pipelines.pages.ledger import PAGE_ROWS, figures, page
from pipelines.report import build_report
from tests.test_report import CLIPS, ROWS, RUN, clip_of, column_of, job, made_of, row_of

FOLDER = Path(plots.__file__).parent
EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; alert(1); //",
    "{{ 7 * 7 }}{% include 'base.html' %}",
    "</style><style>*{background:url(//evil.example)}",
    "</svg><svg onload=alert(1)>",
    "javascript:alert(1)",
    "$\\frac{1}{2}$ & <b>bold</b>",
    "bell\x07 and nul\x00 and \x1b[31mred",
    "מבחן 影片 \u202eevil",
)
VOID = {"meta", "link", "br", "hr", "img", "input"}

# Prints the page of a report in a process of its own, whose settings want other figures.
ELSEWHERE = """
import sys
from pipelines.pages.ledger import page
from tests.test_report import CLIPS, ROWS, RUN, made_of
sys.stdout.write(page(made_of(CLIPS, ROWS, RUN)))
"""


class Page(HTMLParser):
    """What a page holds: elements with their attributes, and text; tags must be balanced."""

    def __init__(self, content):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(content)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def evil_report():
    """Every text that others write is evil: ids, messages, media, labels, splits, run names."""
    clips, rows = [], []
    for number, text in enumerate(EVIL):
        labels = {"feeling" + text: text}
        clips.append(
            clip_of(f"c{number}", id=text, media=f"/films/{text}", split=text, labels=labels)
        )
        rows.append(row_of(f"c{number}", "quarantined", "corrupt", f"it said {text}", 0))
    clips.append(clip_of("hurt", id=EVIL[0]))
    rows.append(row_of("hurt", message=EVIL[1]))
    stages = {text: entry for text in EVIL for entry in job()["stages"].values()}
    slowest = [{"key": text, "seconds": 1.0} for text in EVIL]
    log = [job(run=text, host=text, stages=stages, slowest=slowest) for text in EVIL]
    columns = {text: column_of(rows) for text in EVIL}
    return build_report(EVIL[0], clips, columns, log, unfinished=[EVIL[1]])


@pytest.fixture(scope="module")
def plain():
    return page(made_of(CLIPS, ROWS, [*RUN, job(run="r2", time=9000.0)]))


@pytest.fixture(scope="module")
def evil():
    return page(evil_report())


@pytest.fixture(scope="module", params=["plain", "evil"])
def either(request):
    return request.getfixturevalue(request.param)


# What others wrote


def test_text_of_others_is_shown_as_text(evil):
    told = "".join(Page(evil).texts)
    for text in EVIL:
        assert printable(text) in told


def test_text_of_others_becomes_no_element_and_no_attribute(plain, evil):
    assert {tag for tag, _ in Page(evil).elements} <= {tag for tag, _ in Page(plain).elements}
    names = {name for _, attributes in Page(evil).elements for name in attributes}
    assert not [name for name in names if name.startswith("on")]
    assert "49" not in "".join(Page(render("ledger.html", **values_of("{{ 7 * 7 }}"))).texts)


def values_of(name):
    made = replace(made_of([], []), dataset=name)
    empty = Table("", [])
    return {
        "made": made,
        "balance": "",
        "tiles": [],
        "ledger": empty,
        "parts": [],
        "quarantined": empty,
        "damaged": empty,
        "apart": empty,
        "least": 0.2,
        "durations": empty,
        "steps": empty,
        "runs": None,
        "slowest": empty,
        "stages": [],
        "figures": {},
    }


def test_a_page_holds_no_control_character(evil):
    assert re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", evil) == []
    evil.encode()


# Nothing from elsewhere


def test_a_page_runs_nothing_and_fetches_nothing(either):
    found = Page(either)
    assert {"script", "link", "iframe", "object", "embed", "base", "form", "img"}.isdisjoint(
        tag for tag, _ in found.elements
    )
    for _, attributes in found.elements:
        for name in ("src", "srcset", "href", "xlink:href", "action", "data", "poster"):
            assert attributes.get(name, "#").startswith("#")
        assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", attributes.get("style") or "")
    for style in re.findall(r"<style>(.*?)</style>", either, re.DOTALL):
        assert not re.search(r"url\(|@import|expression|https?:", style)
    [policy] = [each for each in found.all("meta") if "http-equiv" in each]
    assert policy["content"].startswith("default-src 'none'; style-src 'unsafe-inline'")
    outside = re.sub(r'xmlns="http://www\.w3\.org/2000/svg"', "", either)
    assert "http://" not in outside
    assert "https://" not in outside


def test_every_template_is_in_the_package():
    project = tomllib.loads((FOLDER.parent.parent / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["pipelines"]
    packed = {path for pattern in patterns for path in FOLDER.parent.glob(pattern)}
    others = {path for path in FOLDER.iterdir() if path.suffix not in {".py", ""}}
    assert others <= packed


# Readable for everybody


def test_ids_on_a_page_are_unique_and_every_reference_leads_to_one(either):
    found = Page(either)
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in found.elements:
        told = [attributes.get("href", ""), attributes.get("aria-labelledby", "")]
        told += re.findall(r"url\((#[^)]*)\)", " ".join(filter(None, attributes.values())))
        assert {each.removeprefix("#") for each in told if each} <= set(ids)


def test_a_page_tells_its_language_title_and_headings_in_order(either):
    found = Page(either)
    assert found.all("html") == [{"lang": "en"}]
    assert len(found.all("title")) == len(found.all("h1")) == len(found.all("main")) == 1
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_tables_have_captions_and_every_heading_its_scope(either):
    found = Page(either)
    assert len(found.all("table")) == len(found.all("caption")) > 5
    assert {attributes.get("scope") for attributes in found.all("th")} == {"col", "row"}
    regions = [each for each in found.all("div") if each.get("role") == "region"]
    assert len(regions) == len(found.all("table"))
    assert all(each["aria-label"] and each["tabindex"] == "0" for each in regions)


def test_figures_have_labels_and_captions(either):
    found = Page(either)
    drawn = found.all("svg")
    assert len(drawn) == len(found.all("figcaption")) == 6
    assert all(each["role"] == "img" and len(each["aria-label"]) > 10 for each in drawn)


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    """The ratio of WCAG 2.2, from 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark", "paper"])
def test_text_stands_out_from_its_background_in_light_dark_and_on_paper(theme):
    blocks = re.findall(r":root \{(.*?)\}", (FOLDER / "page.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", blocks[theme]))
    pairs = [(text, "paper") for text in ("ink", "faint", "link", "bad")]
    pairs += [("ink", "raised"), ("faint", "raised"), ("good", "good-paper"), ("bad", "bad-paper")]
    for text, paper in pairs:
        assert contrast(colours[text], colours[paper]) >= 4.5, (text, paper)


# Equal bytes


def test_equal_reports_give_equal_bytes_in_another_process_with_other_settings(tmp_path):
    (tmp_path / "matplotlibrc").write_text(
        "font.size: 20\nsvg.fonttype: path\nlines.linewidth: 9\naxes.grid: True\n"
        "figure.facecolor: red\naxes.formatter.use_locale: True\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        capture_output=True,
        check=True,
        timeout=120,
        cwd=FOLDER.parent.parent,
        env={"MPLCONFIGDIR": str(tmp_path), "PYTHONHASHSEED": "7", "PATH": "/usr/bin"},
    )
    assert done.stdout.decode() == page(made_of(CLIPS, ROWS, RUN))


def test_drawing_leaves_the_settings_of_matplotlib_as_they_were():
    with mpl.rc_context({"font.size": 33, "svg.fonttype": "path"}):
        before = dict(mpl.rcParams)
        page(made_of(CLIPS, ROWS, RUN))
        assert dict(mpl.rcParams) == before


def test_drawing_loads_no_pyplot():
    code = f"{ELSEWHERE}\nsys.exit('matplotlib.pyplot' in sys.modules)"
    root = FOLDER.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, timeout=120, cwd=root
    )
    assert done.returncode == 0, done.stderr


# Figures


def test_a_figure_is_drawn_only_where_there_are_numbers():
    assert set(figures(made_of(CLIPS, ROWS, RUN))) == {
        "ledger",
        "faults",
        "durations",
        "steps",
        "stages",
        "slowest",
    }
    assert set(figures(made_of(CLIPS[:1], ROWS[:1]))) == {"ledger", "durations", "steps"}
    assert figures(build_report("set", [], {}, [])) == {}
    assert page(build_report("set", [], {}, []))


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("ledger", "clips"),
        ("faults", "clips"),
        ("durations", "duration of a clip (seconds)"),
        ("steps", "steps of a clip"),
        ("stages", "busy time, all workers (seconds)"),
        ("slowest", "work on a clip (seconds)"),
    ],
)
def test_an_axis_says_what_it_counts_with_its_unit(name, unit):
    drawn = figures(made_of(CLIPS, ROWS, RUN))[name].svg
    assert unit in Page(drawn).texts


def test_names_in_figures_are_text_as_they_are():
    drawn = plots.bars("x", "Title", "clips", {"$a_b$ & <c>": 3, "影片": 2}, notes={"影片": "$2$"})
    texts = Page(drawn).texts
    assert {"$a_b$ & <c>", "影片", "$2$"} <= set(texts)


def test_what_a_figure_shows_is_told_as_text():
    [svg] = Page(plots.bars("x", 'say "<b>" & more', "clips", {"a": 1})).all("svg")
    assert svg["aria-label"] == 'say "<b>" & more'


def test_a_long_name_is_cut_in_the_middle():
    name = "a" * 30 + "b" * 30
    [cut] = [text for text in Page(plots.bars("x", "T", "clips", {name: 1})).texts if "a" in text]
    assert re.fullmatch("a+\u2026b+", cut)


def test_parts_of_a_bar_differ_in_more_than_colour():
    assert len(set(plots.PALETTE)) == len(set(plots.HATCHES)) == len(plots.PALETTE)


# Sizes


def test_many_lost_clips_make_no_large_page_and_what_is_left_out_is_said():
    clips = [
        clip_of(f"clip{n:05d}", split="train", labels={"feeling": f"feeling {n % 400}"})
        for n in range(5000)
    ]
    message = "Invalid data found when processing input; moov atom not found"
    rows = [row_of(clip.key, "quarantined", "unreadable", message, 0) for clip in clips[:3000]]
    rows += [row_of(clip.key, message=message) for clip in clips[3000:]]
    made = made_of(clips, rows, RUN)
    content = page(made)
    assert len(content.encode()) < 500_000
    assert f"{3000 - PAGE_ROWS:,} more are left out" in content
    assert f"{2000 - PAGE_ROWS:,} more are left out" in content
    assert "370 more values are left out" in content
    assert len(made.to_json()["quarantined"]) == 3000
    assert len(json.dumps(made.to_json())) < 3_000_000


def test_a_value_that_a_template_names_must_be_given():
    with pytest.raises(UndefinedError, match="balance"):
        render("ledger.html", made=made_of(CLIPS, ROWS))


def test_a_column_of_figures_stands_on_the_right_and_one_of_names_does_not():
    table = Table(
        "T",
        [
            {"name": "1", "id": "7a", "count": 3, "share": "<0.1 %", "both": "12 (3 %)"},
            {"name": "b", "id": "8", "count": 4, "share": "", "both": "1 (0.2 %)"},
        ],
    )
    assert table.numeric == {"count", "share", "both"}


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (units.amount(5000), "5,000"),
        (units.amount(0.1234), "0.123"),
        (units.amount(12345.6), "12,346"),
        (units.amount(999.9), "1,000"),
        (units.amount(None), ""),
        (units.share(0), "0 %"),
        (units.share(1), "100 %"),
        (units.share(0.0001), "<0.1 %"),
        (units.share(0.99999), ">99.9 %"),
        (units.share(0.052), "5.2 %"),
        (units.share(0.5), "50 %"),
        (units.share(2.5), "250 %"),
        (units.share(None), ""),
        (units.span(0), "0 s"),
        (units.span(0.0123), "12.3 ms"),
        (units.span(0.000001), "<0.01 ms"),
        (units.span(0.9999), "1 s"),
        (units.span(59.5), "59.5 s"),
        (units.span(900), "15.0 min"),
        (units.span(90_000), "25.0 h"),
        (units.span(None), ""),
        (units.size(0), "0 bytes"),
        (units.size(999), "999 bytes"),
        (units.size(123_456), "123 kB"),
        (units.size(999_999), "1 MB"),
        (units.size(2.5e9), "2.5 GB"),
        (units.size(None), ""),
    ],
)
def test_numbers_are_written_as_people_read_them(shown, wanted):
    assert shown == wanted
