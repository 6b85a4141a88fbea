"""The laws of the house: what lies where, what importing costs, and what the papers promise."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_BYTES = 500 * 1024
PACKAGES = ("pipelines", "featurizers", "training", "tracking")
HEAVY = ("ray", "deepspeed", "mlflow", "av", "cv2", "h5py", "mediapipe", "transformers", "librosa")

# Imports the modules it is told one by one; prints the heavy libraries that each of them loaded.
IMPORTER = """
import importlib, json, sys

modules, heavy = json.loads(sys.argv[1])
blame, seen = {}, set()
for module in modules:
    importlib.import_module(module)
    new = {name for name in heavy if name in sys.modules} - seen
    seen |= new
    if new:
        blame[module] = sorted(new)
print(json.dumps(blame))
"""


def python_files():
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def modules():
    """Our modules by name, except the one that is written to be run by a tracking server."""
    names = [path.relative_to(ROOT).with_suffix("").parts for path in python_files()]
    dotted = [".".join(name[:-1] if name[-1] == "__init__" else name) for name in names]
    return [name for name in dotted if name != "tracking.serving"]


def heavy_imports(names, heavy):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORTER, json.dumps([list(names), list(heavy)])],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def papers():
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonical(name): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize(
    "name",
    [
        *PACKAGES,
        "tests",
        "docs/decisions",
        "benchmarks",
        "cluster.yaml",
        "pyproject.toml",
        "constraints.txt",
        "Makefile",
        "LICENSE",
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/verified.md",
        "docs/data-format.md",
        ".pre-commit-config.yaml",
        ".ci/run",
    ],
)
def test_the_house_has(name):
    assert (ROOT / name).exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_says_that_it_is_typed(package):
    assert (ROOT / package / "py.typed").exists()


def test_no_file_has_a_name_that_says_nothing():
    empty = {"utils", "util", "common", "core", "helpers", "helper", "misc"}
    assert [path for path in python_files() if empty & set(path.with_suffix("").parts)] == []


def test_the_contract_with_training_is_read_without_any_heavy_library():
    assert heavy_imports(["featurizers.manifest"], [*HEAVY, "torch", "pyarrow"]) == {}


def test_importing_any_module_loads_no_heavy_library():
    assert heavy_imports(modules(), HEAVY) == {}


def test_featurizers_are_imported_without_torch():
    featurizers = [name for name in modules() if name.split(".")[0] == "featurizers"]
    assert heavy_imports(featurizers, ["torch", "pyarrow"]) == {}


def test_the_command_line_is_imported_without_torch():
    assert heavy_imports(["pipelines.__main__"], [*HEAVY, "torch", "pyarrow"]) == {}


def test_every_silenced_rule_is_named_and_has_a_reason():
    bare = []
    for path in [*python_files(), *(ROOT / "tests").glob("*.py")]:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if not re.search(r"#\s*noqa\b", line, re.IGNORECASE):
                continue
            rule = r"#\s*noqa: [A-Z]+\d+(, ?[A-Z]+\d+)* [-#] \S+ \S+"
            if not re.search(rule, line):
                bare.append(f"{path.relative_to(ROOT)}:{number}")
    assert bare == []


def test_no_file_as_a_whole_is_spared_by_the_linter():
    spared = [
        path for path in python_files() if re.search(r"(ruff|flake8): noqa", path.read_text())
    ]
    assert spared == []


@pytest.mark.parametrize(
    "record", sorted((ROOT / "docs" / "decisions").glob("*.md")), ids=lambda path: path.stem
)
def test_a_decision_record_has_its_four_parts(record):
    assert re.fullmatch(r"\d{4}-[a-z0-9-]+", record.stem)
    headings = re.findall(r"^## (.+)$", record.read_text(), re.MULTILINE)
    assert headings == [
        "Context",
        "Decision",
        "Alternatives",
        "What would make us reconsider",
    ]
    assert record.read_text().startswith(f"# {record.stem[:4]} ")


def test_decision_records_are_numbered_without_gaps():
    numbers = sorted(int(path.stem[:4]) for path in (ROOT / "docs" / "decisions").glob("*.md"))
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("paper", papers(), ids=lambda path: path.name)
def test_papers_name_no_path_of_one_machine(paper):
    everywhere = "/mnt/fuseline"  # the disk that all nodes of a cluster share
    assert everywhere in (ROOT / "cluster.yaml").read_text()
    paths = re.findall(
        r"(?<![\w.~/:-])/(?:home|root|work|tmp|Users|mnt|opt)/[\w./-]+", paper.read_text()
    )
    assert [path for path in paths if not path.startswith(everywhere)] == []


@pytest.mark.parametrize("paper", papers(), ids=lambda path: path.name)
def test_links_between_papers_lead_somewhere(paper):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", paper.read_text())
    local = [link for link in links if "://" not in link and not link.startswith("mailto:")]
    assert [link for link in local if not (paper.parent / link).exists()] == []


def test_constraints_hold_versions_and_nothing_else():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line


def test_constraints_pin_the_torch_that_was_tested():
    assert pins()["torch"] == "2.13.0"


def test_every_dependency_is_pinned_within_its_range():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for text in wanted:
        requirement = Requirement(text)
        pinned = pins().get(canonical(requirement.name))
        assert pinned, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pinned), f"{text} does not admit {pinned}"


def test_make_has_the_verbs():
    verbs = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"check", "test", "demo", "bench", "soak"} <= set(verbs)


def test_a_file_that_starts_ray_has_the_mark_by_which_make_runs_it_beside_the_others():
    started, marked = re.compile(r"\b(OnRay|start_ray|ray\.init)\("), re.compile(r"mark\.ray")
    texts = {path.name: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    on_ray = [name for name, text in texts.items() if started.search(text)]
    assert len(on_ray) > 5
    assert [name for name in on_ray if not marked.search(texts[name])] == []


def test_every_make_verb_in_the_papers_exists():
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    spoken = {
        verb for paper in papers() for verb in re.findall(r"`make ([a-z-]+)`", paper.read_text())
    }
    assert spoken <= verbs


def test_continuous_integration_calls_the_same_verbs():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make ")] == ["make check", "make test"]


def test_no_file_of_numbers_is_larger_than_the_commit_hook_lets_through():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert f"--maxkb={MOST_BYTES // 1024}" in hooks
    sizes = {path.name: path.stat().st_size for path in (ROOT / "tests" / "golden").iterdir()}
    assert {name: size for name, size in sizes.items() if size > MOST_BYTES} == {}
