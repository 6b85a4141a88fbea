"""The papers and the command line speak of the same commands."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from pipelines.__main__ import app

ROOT = Path(__file__).parent.parent
PAPERS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = {
    # "job submit" and its like beside "job" itself
    **{
        f"{name} {inner}": command
        for name, group in get_command(app).commands.items()
        for inner, command in getattr(group, "commands", {}).items()
    },
    **get_command(app).commands,
}


def spoken(paper):
    """What follows the word fuseline in code: between backticks, or in an indented block."""
    text = paper.read_text()
    code = [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^(?: {4,}|\t)(.+)$", text, re.M)]
    return [words for each in code for words in re.findall(r"\bfuseline ((?:\S+ ?)+)", each)]


def verb_of(words):
    """The command, with the one of its group."""
    first, *rest = words.split()
    if not hasattr(COMMANDS.get(first), "commands") or not rest:
        return first
    return f"{first} {rest[0]}"


def verbs(paper):
    found = {verb_of(words) for words in spoken(paper)}
    return {verb for verb in found if re.fullmatch(r"[a-z][a-z -]+", verb)}


@pytest.mark.parametrize(
    "command", sorted(name for name, each in COMMANDS.items() if not hasattr(each, "commands"))
)
def test_every_command_is_in_the_papers(command):
    assert any(command in verbs(paper) for paper in PAPERS)


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_every_command_in_the_papers_is_one(paper):
    assert verbs(paper) <= set(COMMANDS)


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_every_option_in_the_papers_is_one_of_its_command(paper):
    for words in spoken(paper):
        ours = words.split("#")[0].split(" -- ")[0]  # a job's own words come after it
        verb = verb_of(ours)
        rest = ours.removeprefix(verb).split()
        if verb in COMMANDS:
            known = {
                o for each in COMMANDS[verb].params for o in (*each.opts, *each.secondary_opts)
            }
            given = {re.sub(r"=.*|[.,;:)]+$", "", word) for word in rest if word.startswith("--")}
            assert given <= {*known, "--help"}, words
