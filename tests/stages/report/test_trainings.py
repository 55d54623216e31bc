"""What the systems were trained on, from planted facts of trainings: transcripts, the teacher's words, steps, settings."""

import json

HEADING = "What the systems were trained on"


def facts(tree, method, language="cs", folder=None, **changes):
    path = tree.run(folder or method, language)
    found = json.loads(path.read_text("utf-8"))
    settings = {**found["settings"], "method": method}
    path.write_text(json.dumps({**found, "settings": settings, **changes}), encoding="utf-8")


def table(tree):
    tree.write()
    markdown, html = ((tree.out / name).read_text("utf-8") for name in ("report.md", "index.html"))
    if HEADING not in markdown:
        assert HEADING not in html
        return [], ""
    part = markdown.split(f"### {HEADING}")[1].split("\n#")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    assert html.count(f"<h3>{HEADING}</h3>") == 1 and all(
        f"<td>{cell}</td>" in html for row in rows[2:] for cell in row[3:]
    )
    return rows[2:], part


def test_transcripts_and_the_teacher_s_words_stand_apart(tree):
    for system in ("base", "teacher", "lora", "lora-kd"):
        tree.system(system, [1, 2])
    facts(tree, "full", folder="teacher", training_utterances=1_079, steps=135, best_step=135)
    facts(tree, "lora", training_utterances=546, changes={"learning_rate": 2e-3, "seed": 4, "kd_weight": 1.0})
    changes = {"learning_rate": 1e-3, "kd_weight": 1.0, "train_fraction": 0.5, "gate_budget": 0.1}
    facts(
        tree, "lora-kd", training_utterances=1_546, teacher_targets=1_269, best_validation_wer=0.4879, changes=changes
    )
    rows, text = table(tree)
    assert rows == [
        ["teacher (whisper-base)", "-", "1,079", "0", "135 (135)", "50.0"],
        ["LoRA", "learning\\_rate 0.002", "546", "0", "250 (125)", "50.0"],
        [
            "LoRA+KD",
            "learning\\_rate 0.001, kd\\_weight 1.0, train\\_fraction 0.5",
            *("277", "1,269", "250 (125)", "48.8"),
        ],
    ]
    assert "together" not in text
    assert (
        "LoRA+KD was trained on 277 transcripts, LoRA on 546: the difference between them is not the teacher's" in text
    )


def test_twins_with_the_same_transcripts_have_no_note(tree):
    for system in ("lora", "lora-kd", "full-kd"):
        tree.system(system, [1, 2])
    facts(tree, "lora", training_utterances=277)
    facts(tree, "lora-kd", training_utterances=1_079, teacher_targets=802)
    facts(tree, "full-kd", training_utterances=20)  # its twin was not measured
    assert "the difference between them" not in table(tree)[1]


def test_a_training_of_several_languages_says_so(tree):
    data = {"corpus": "fish", "corpus_utterances": 9, "subset": None, "teacher": None, "targets": None}
    tree.system("clsr", [1, 2])
    facts(tree, "clsr", data={"cs": data, "nl": data})
    assert "CLSR-FT was trained on cs, nl together: its counts are of all of them." in table(tree)[1]


def test_what_was_not_trained_has_no_row(tree):
    tree.system("base", [1, 2])
    tree.system("clsr", [1, 2])
    facts(tree, "lora")  # not measured
    assert table(tree) == ([], "")


def test_another_step_is_told(tree):
    tree.system("lora", [1, 2])
    path = tree.run("lora")
    found = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**found, "settings": {**found["settings"], "accumulate": 1}}), encoding="utf-8")
    assert table(tree)[0][0][1] == "8 utterances a step"
