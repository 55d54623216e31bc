"""The use of the gates by the amount of training data, from planted metrics of one language's entries."""

import re

import pytest

UTTERANCES = {"3k": 3_000, "10k": 10_000, "28k": 28_000}


def gates(encoder, decoder):
    """Two layers a side, whose mean is what is asked for."""
    sides = {"encoder": encoder, "decoder": decoder}
    return {f"{side}.layers.{layer}": share + 0.1 - 0.2 * layer for side, share in sides.items() for layer in (0, 1)}


def plant(tree, language, size, system="clsr-kd", encoder=0.3, decoder=0.5, **changes):
    folder = tree.metrics / f"{language}-x-{size}"
    path = tree.system(system, [2, 1], language, "common-voice", gates=gates(encoder, decoder), **changes)
    for one in (path, path.with_suffix(".utterances.jsonl")):
        folder.mkdir(parents=True, exist_ok=True)
        one.rename(folder / one.name)
    run = tree.run(system, language, UTTERANCES[size], size)
    (tree.models / folder.name / system).mkdir(parents=True, exist_ok=True)
    run.rename(tree.models / folder.name / system / run.name)


def write(tree):
    tree.write()
    return (tree.out / "report.md").read_text("utf-8"), (tree.out / "index.html").read_text("utf-8")


def test_figure_and_table_have_the_planted_shares(tree):
    for language, first in (("ca", 0.2), ("th", 0.4)):
        for number, size in enumerate(("28k", "3k", "10k")):
            plant(tree, language, size, encoder=first + 0.05 * number, decoder=0.3 + 0.1 * number)
            plant(tree, language, size, "clsr", encoder=first + 0.1, decoder=0.3)
    markdown, html = write(tree)
    part = markdown.split("## Gate use by training size: common-voice")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith(("| Catalan", "| Thai"))]
    assert rows[:6] == [
        ["Catalan", "CLSR-FT", "3,000", "30", "30"],
        ["Catalan", "CLSR-FT", "10,000", "30", "30"],
        ["Catalan", "CLSR-FT", "28,000", "30", "30"],
        ["Catalan", "CLSR-FT+KD", "3,000", "25", "40"],
        ["Catalan", "CLSR-FT+KD", "10,000", "30", "50"],
        ["Catalan", "CLSR-FT+KD", "28,000", "20", "30"],
    ]
    assert len(rows) == 12 and rows[-1] == ["Thai", "CLSR-FT+KD", "28,000", "40", "30"]
    linked = re.findall(r"\]\((figures/gates-by-size-[^)]+)\)", part)
    assert linked == [f"figures/gates-by-size-common-voice-{side}.svg" for side in ("encoder", "decoder")]
    for name in linked:
        svg = (tree.out / name).read_text("utf-8")
        for text in ("training utterances", "3,000", "10,000", "28,000", "Catalan", "Thai", "CLSR-FT", "CLSR-FT+KD"):
            assert f">{text}</text>" in svg
    assert html.index("Overview") < html.index("Gate use by training size") < html.index('id="ca-x-3k"')
    assert re.findall(r"<h2>(Catalan[^<]*)</h2>", html) == [f"Catalan (ca), {size}" for size in UTTERANCES]
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_entries_of_a_language_without_spaces_go_by_characters(tree):
    plant(tree, "th", "3k")
    markdown, _ = write(tree)
    assert "## Thai (th), 3k" in markdown and "| System | CER % |" in markdown


@pytest.mark.parametrize("case", ["one size", "no gates", "no run", "two languages in one run"])
def test_nothing_is_drawn_without_several_known_sizes(tree, case):
    plant(tree, "ca", "3k")
    plant(tree, "ta", "10k")
    if case != "one size":
        plant(tree, "ca", "10k")
        markdown, _ = write(tree)
        assert "Gate use by training size" in markdown
        run = tree.models / "ca-x-10k/clsr-kd/training.json"
        metrics = tree.metrics / "ca-x-10k/clsr-kd.json"
        if case == "no run":
            run.unlink()
        elif case == "no gates":
            metrics.write_text(re.sub(r'"gates": {[^}]*}', '"gates": {}', metrics.read_text("utf-8")), "utf-8")
        else:
            text = run.read_text("utf-8")
            run.write_text(re.sub(r'("data": {)("ca": ({[^}]*}))', r'\1\2, "ta": \3', text), "utf-8")
    markdown, html = write(tree)
    assert "Gate use by training size" not in markdown + html
    assert list((tree.out / "figures").glob("gates-by-size-*")) == []


def test_published_rates_stand_at_each_size(tree):
    for size in UTTERANCES:
        plant(tree, "ca", size, audio_window_s=30, corpus_utterances=16_380)
    markdown, _ = write(tree)
    found = re.findall(r"\| CLSR-FT\+KD \| (\d+k) \| 30\.0 \| ([\d.]+) \|", markdown)
    assert found == [("3k", "18.9"), ("10k", "13.8"), ("28k", "9.2")]
