"""The pages for people, against the project that they speak of."""

import re
import subprocess
import sys
from pathlib import Path

import check_docs
import pytest
from ruamel.yaml import YAML
from sources import ROOT

LINTERS = ["ruff check", "ruff format --check", "mypy", "codespell", "python tests/support/check_docs.py"]


def yaml(name: str):
    return YAML(typ="safe", pure=True).load((ROOT / name).read_text(encoding="utf-8"))


def makefile() -> dict[str, list[str]]:
    """Each target's commands."""
    targets: dict[str, list[str]] = {}
    name = ""
    for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines():
        if line.startswith("\t") and name:
            targets[name].append(line.strip())
        elif found := re.match(r"([^\s:.#=]\S*): ?(?!=)", line):
            name = found[1]
            targets[name] = []
    return targets


@pytest.mark.parametrize("page", check_docs.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_links_and_names_lead_somewhere(page: Path):
    assert check_docs.faults(page) == []


def test_the_pages_are_where_they_are_looked_for():
    names = {str(page.relative_to(ROOT)) for page in check_docs.pages()}
    assert {"README.md", "CONTRIBUTING.md", "docs/architecture.md", "tests/README.md"} <= names
    assert ".github/pull_request_template.md" in names


def test_each_kind_of_fault_is_a_line(tmp_path: Path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/shards.py").write_text("class ShardReader:\n    def tail(self): ...\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/other.md").write_text("# A page\n\n## Where it is, `now`\n\n## Twice\n\n## Twice\n")
    page = tmp_path / "docs/page.md"
    page.write_text(
        "# Here\n"
        "[good](other.md), [anchor](other.md#where-it-is-now), [own](#here), [web](https://example.org/x#y)\n"
        "[second](other.md#twice-1), `cache/shards.py`, `cache/*.py`, shards.py, cache/, ~/.cache/logs\n"
        "```\n[not a link](nowhere.md)\n" + 130 * "x" + "\n```\n"
        "[dead](lost.md), [no anchor](other.md#there), [no anchor here](#there)\n"
        "`cache/lost.py`, `cache/x*.py`, lost.py\n"
        "\n| what | file | name |\n| --- | --- | --- |\n"
        "| good | `cache/shards.py` | `ShardReader.tail` |\n"
        "| bad | `cache/shards.py` | `ShardReader`, `gone` |\n" + 121 * "y" + "\n"
    )
    assert check_docs.faults(page, tmp_path) == [
        "docs/page.md: link to lost.md: there is no lost.md",
        "docs/page.md: link to other.md#there: no heading there has this anchor",
        "docs/page.md: link to #there: no heading there has this anchor",
        "docs/page.md: there is no cache/lost.py",
        "docs/page.md: there is no cache/x*.py",
        "docs/page.md: no file is called lost.py",
        "docs/page.md: cache/shards.py does not hold gone",
        f"docs/page.md: a line of 121 characters, at most 120: {40 * 'y'}…",
    ]


def test_the_hooks_run_what_make_lint_runs():
    linted = [line.removeprefix("$(BIN)/").split(" $(")[0].removesuffix(" .") for line in makefile()["lint"]]
    assert linted == LINTERS
    (local,) = yaml(".pre-commit-config.yaml")["repos"]
    hooks = [
        hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude").replace("  ", " ")
        for hook in local["hooks"]
    ]
    assert local["repo"] == "local" and hooks == LINTERS


def test_make_lists_its_targets():
    listed = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = {line.split()[1] for line in listed.splitlines()}
    assert named == {name for name in makefile() if not name.startswith("$")}
    for page in ("README.md", "CONTRIBUTING.md", "tests/README.md"):
        for target in set(re.findall(r"`make ([a-z-]+)", (ROOT / page).read_text(encoding="utf-8"))):
            assert target in named, f"{page}: make {target}"


def test_the_workflow_decides_as_here():
    job = yaml(".github/workflows/check.yml")["jobs"]["check"]
    assert job["steps"][-1]["run"] == ".ci/run"
    assert job["steps"][0]["with"]["fetch-depth"] == 0


def test_the_citation_is_of_this_version():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib comes with Python 3.11")
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    cited = yaml("CITATION.cff")
    assert (str(cited["version"]), cited["license"]) == (project["version"], project["license"])
    assert any("2311.01070" in each["url"] for each in cited["references"])


@pytest.mark.parametrize(("name", "rows"), [("scale.md", 4), ("reproduce.md", 24)])
def test_an_estimate_is_what_its_code_prints(name: str, rows: int):
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "print(" in block)
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert len(printed.splitlines()) == rows
    assert printed in page


def test_the_page_about_the_paper_has_the_numbers_of_the_release_that_the_report_knows():
    from stages.report.published import CV13

    page = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")
    for language, (train, test) in CV13.items():
        assert re.search(rf"^\| {language} \| [\d.]+ \| {train:,} \| {test:,} \| [\d.]+ \|$", page, re.MULTILINE)
        assert f'"{language}": ({test}, ' in page
