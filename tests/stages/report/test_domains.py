"""A language's corpora side by side, the use of the gates on each, and the facts of the teacher's cache."""

import re

import numpy as np
from cache_makers import LEFT_OUT, ROWS, make_teacher, make_utterances, teacher_record


def gates(encoder, decoder):
    sides = {"encoder": encoder, "decoder": decoder}
    return {f"{side}.layers.{layer}": share + 0.1 - 0.2 * layer for side, share in sides.items() for layer in (0, 1)}


def pages(tree):
    tree.write(resamples=200)
    markdown = (tree.out / "report.md").read_text("utf-8").replace("\\", "")
    return markdown, (tree.out / "index.html").read_text("utf-8")


def test_corpora_stand_side_by_side(tree):
    tree.system("base", [5] * 10)
    tree.system("clsr", [2] * 10, gates=gates(0.3, 0.5))
    tree.system("base", [1] * 10, corpus="radio", further=True)
    tree.system("clsr", [3] * 10, corpus="radio", further=True, gates=gates(0.2, 0.1))
    tree.system("lora", [4] * 10)
    markdown, html = pages(tree)
    table = markdown.split("### In and out of domain")[1].split("###")[0]
    assert "In domain: fish, the corpus of the training data. Out of domain: radio." in table
    rows = {line.split(" | ")[0]: line.strip("| ").split(" | ")[1:] for line in table.splitlines() if " | " in line}
    assert [rows["| CLSR-FT"][cell] for cell in (0, 2, 3, 5)] == [
        "40.0 (40.0 to 40.0)",
        "-60.0 (-60.0 to -60.0)",
        "60.0 (60.0 to 60.0)",
        "+40.0 (+40.0 to +40.0)",
    ]
    assert rows["| LoRA"][3:] == ["-", "-", "-"]
    assert list(rows)[2:] == ["| whisper-base", "| LoRA", "| CLSR-FT"]
    assert "| Czech (cs) | CLSR-FT | fish | 30 | 50 |" in markdown
    assert "| Czech (cs) | CLSR-FT | radio | 20 | 10 |" in markdown
    for side in ("encoder", "decoder"):
        assert (tree.out / f"figures/cs-domains-gates-{side}.svg").exists()
    assert html.index("In and out of domain") < html.index("fish, test")


def test_one_corpus_has_no_such_table_and_validation_is_no_other_domain(tree):
    tree.system("base", [5] * 10)
    tree.system("base", [5] * 10, corpus="validation", further=True)
    tree.system("clsr", [2] * 10, gates=gates(0.3, 0.5))
    markdown, html = pages(tree)
    assert "In and out of domain" not in markdown + html
    assert "Gate use by language" not in markdown + html


def test_gate_use_of_several_languages_stands_in_one_table(tree):
    for language, share in (("cs", 0.3), ("nl", 0.6)):
        tree.system("base", [5] * 10, language)
        tree.system("clsr", [2] * 10, language, gates=gates(share, share))
    markdown, _ = pages(tree)
    assert re.findall(r"\| (\w+) \(\w+\) \| CLSR-FT \| fish \| (\d+) \|", markdown) == [
        ("Czech", "30"),
        ("Dutch", "60"),
    ]


def test_the_facts_of_the_cache_are_those_of_the_planted_distributions(tree, tmp_path):
    tree.system("base", [5] * 10)
    tree.system("clsr-kd", [2] * 10)
    make_teacher(tree.teacher / "cs/train", make_utterances(tmp_path / "utterances"))
    numbers = [number for number in range(sum(ROWS)) if number != LEFT_OUT]
    records = [teacher_record(number) for number in numbers]
    tokens = sum(len(record["targets"]) for record in records)
    masses = np.concatenate([1 - np.exp(record["tail_log_probs"]) for record in records])
    markdown, html = pages(tree)
    for page in (markdown, re.sub("<[^>]+>", "|", html)):
        facts = page.split("What the teacher left for training")[1]
        assert re.search(rf"Target tokens[ |]+{tokens}\b", facts)
        assert re.search(rf"Probability kept at a position[ |]+mean {masses.mean():.4f}", facts)
        assert re.search(r"Targets[ |]+7 transcripts, 0 of the teacher", facts)
        assert re.search(r"Left out[ |]+1 ", facts)


def test_a_cache_that_is_gone_is_said_where_a_student_was_taught(tree):
    tree.system("base", [5] * 10)
    tree.system("clsr", [2] * 10)
    markdown, _ = pages(tree)
    assert "teacher's cache" not in markdown
    tree.system("clsr-kd", [2] * 10)
    markdown, html = pages(tree)
    for page in (markdown, html.replace("&#39;", "'")):
        assert "The facts of the teacher's cache are left out: " in page and "train holds no shards." in page
