import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from cache.errors import PipelineError
from stages.report.run import format_summary

SENTENCE = "jedna dva tři čtyři pět"
BASE = [4, 3, 4, 3, 4, 3, 4, 3, 4, 3]  # 35 of 50 words wrong
STUDENT = [2, 1, 2, 1, 2, 1, 2, 1, 2, 5]  # 19 of 50, worse in the last utterance
GATES = {
    f"{side}.layers.{layer}": share for side, share in (("encoder", 0.25), ("decoder", 0.75)) for layer in range(6)
}


def report(tree):
    page = tree.write(title="A report", resamples=500)
    assert page == tree.out / "index.html"
    return page.read_text("utf-8"), (tree.out / "report.md").read_text("utf-8")


def numbers(tree, language="cs", corpus="fish"):
    return json.loads((tree.out / "comparison.json").read_text("utf-8"))["languages"][language][corpus]


class Addresses(HTMLParser):
    """Everything a page would fetch or run."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [tag] if tag in ("script", "link", "iframe", "object", "img", "image", "x") else []
        self.found += [
            value for name, value in attributes if name in ("src", "href", "xlink:href") and value[:1] != "#"
        ]
        self.found += [name for name, _ in attributes if name.startswith("on")]


def test_planted_numbers_reach_every_output(tree):
    tree.system("base", BASE)
    tree.system("clsr-kd", STUDENT, gates=GATES)
    html, markdown = report(tree)
    systems = numbers(tree)["systems"]
    assert systems["base"]["wer"] == pytest.approx(0.70)
    assert systems["clsr-kd"]["wer_minus_base"] == pytest.approx(-0.32)
    assert systems["clsr-kd"]["real_time_factor"] == 0.25
    assert (systems["clsr-kd"]["expert_share_encoder"], systems["clsr-kd"]["expert_share_decoder"]) == (0.25, 0.75)
    low, high = -systems["clsr-kd"]["wer_minus_base_high"], -systems["clsr-kd"]["wer_minus_base_low"]
    verdict = (
        "CLSR-FT+KD is 32.0 points of WER below whisper-base "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f})."
    )  # fmt: skip
    assert 0 < low < 0.32 < high
    assert numbers(tree)["verdict"] == verdict
    assert verdict in html
    assert f"**{verdict}**" in markdown
    row = next(line for line in markdown.splitlines() if line.startswith("| CLSR-FT+KD |"))
    interval = f"{100 * systems['clsr-kd']['wer_low']:.1f} to {100 * systems['clsr-kd']['wer_high']:.1f}"
    assert row.split(" | ")[1:3] == ["38.0", interval]
    assert row.split(" | ")[4].startswith("-32.0 (-")
    assert row.endswith("19 / 0 / 0 | 50 (10) | 38.0 | 0.25 | 25 / 75 |")
    for cell in ("38.0", "19 / 0 / 0", "50 (10)", "25 / 75"):
        assert f">{cell}</td>" in html
    assert "u09: 3 → 5 word errors" in markdown.split("Worse:")[1]
    assert "u00: 4 → 2 word errors" in markdown.split("Worse:")[0]


def test_a_page_that_runs_nothing_and_links_what_lies_beside_it(tree):
    tree.recordings([SENTENCE] * 10)
    tree.system("base", BASE)
    tree.system("clsr", STUDENT, gates=GATES)
    tree.curve("clsr", [{"step": 1, "epoch": 0.1, "loss": 3.0, "ce": 2.0, "gate": 0.1, "gate_mean": 0.4}])
    html, _ = report(tree)
    addresses = Addresses()
    addresses.feed(html)
    pages = {address.partition("#")[0] for address in addresses.found}
    assert len(pages) == 6 + 1  # six examples with a recording, and the page of the utterances
    assert all((tree.out / unquote(page)).is_file() for page in pages)
    assert "http" not in html
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert html.count("<svg") == len(list((tree.out / "figures").iterdir())) == 6
    assert ">layer</text>" in html


def test_markdown_points_at_the_figures_that_were_written(tree):
    tree.system("base", BASE, corpus="a corpus/v1")
    tree.system("clsr", STUDENT, corpus="a corpus/v1", gates=GATES)
    _, markdown = report(tree)
    linked = re.findall(r"\]\((figures/[^)]+)\)", markdown)
    assert sorted(linked) == sorted(f"figures/{path.name}" for path in (tree.out / "figures").iterdir())
    alone = (tree.out / linked[0]).read_text("utf-8")
    assert 'xmlns="http://www.w3.org/2000/svg"' in alone


def test_transcripts_are_text_not_markup(tree):
    nasty = "<script>alert(1)</script> | a & b\n# *c* `d` [e](f)"
    tree.system("base", None, texts=[(nasty, "nic")], unscored=[{"id": "<x>", "reason": "a|b\nc"}])
    tree.system("clsr", None, texts=[(nasty, nasty)])
    html, markdown = report(tree)
    addresses = Addresses()
    addresses.feed(html)
    assert {address.partition("#")[0] for address in addresses.found} == {"utterances/cs-fish.html"}
    assert "&lt;script&gt;alert(1)&lt;/script&gt; | a &amp; b # *c*" in html
    assert r"reference: &lt;script&gt;alert(1)&lt;/script&gt; \| a &amp; b \# \*c\* \`d\` \[e\](f)" in markdown
    assert r"&lt;x&gt; (a\|b c)" in markdown
    assert "<script" not in markdown


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        (
            [4, 3, 4, 3, 4, 3, 4, 2, 5, 3],
            "No clear difference between CLSR-FT and whisper-base: .* which includes zero",
        ),
        ([3, 4, 3, 4, 4, 3, 4, 3, 4, 3], r"No clear difference .* 0\.0 points of WER below .* which includes zero"),
        ([5] * 10, r"^CLSR-FT is worse: 30\.0 points of WER above whisper-base \(95 % interval 24\.0 to 36\.0\)\.$"),
    ],
)
def test_an_honest_verdict(tree, student, expected):
    tree.system("base", BASE)
    tree.system("clsr", student)
    report(tree)
    assert re.search(expected, numbers(tree)["verdict"])


def test_the_verdict_names_the_plain_student_and_a_better_rival(tree):
    tree.system("base", BASE)
    tree.system("clsr", [3] * 10)
    tree.system("clsr-kd", [2] * 10)
    tree.system("full", [1] * 10)
    report(tree)
    assert "; better than CLSR-FT by 20.0 points (95 % interval 20.0 to 20.0); full fine-tuning does better, 20.0 % against " \
        "40.0 %." in numbers(tree)["verdict"]  # fmt: skip
    assert list(numbers(tree)["systems"]) == ["base", "full", "clsr", "clsr-kd"]


def test_a_student_is_held_against_the_better_of_the_base_and_its_own_window(tree):
    """What the short window costs the base is no gain of the student."""
    tree.system("base", [4] * 10)
    tree.system("base-30s", [2] * 10, audio_window_s=30.0)
    tree.system("clsr", [3] * 10)
    _, markdown = report(tree)
    assert list(numbers(tree)["systems"]) == ["base", "base-30s", "clsr"]
    assert numbers(tree)["verdict"].startswith(
        "CLSR-FT is worse: 20.0 points of WER above whisper-base, 30 s window (95 % interval 20.0 to 20.0)"
    )
    assert numbers(tree)["notes"] == []
    assert "| whisper-base, 30 s window |" in markdown
    tree.system("base-30s", [5] * 10, audio_window_s=30.0)
    report(tree)
    assert numbers(tree)["verdict"].startswith("CLSR-FT is 20.0 points of WER below whisper-base (95 %")


def test_the_verdict_is_about_a_taught_student_where_there_is_one(tree):
    tree.system("base", BASE)
    tree.system("clsr", [3] * 10)
    tree.system("lora", [2] * 10)
    tree.system("lora-kd", [1] * 10)
    report(tree)
    assert numbers(tree)["verdict"].startswith("LoRA+KD is")
    assert "; better than LoRA by 20.0 points" in numbers(tree)["verdict"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"audio_window_s": 30.0}, "the audio window is 30 s for CLSR-FT, 7 s for whisper-base"),
        ({"normaliser": "lang"}, "the normaliser is lang for CLSR-FT, marks-1 for whisper-base"),
        ({}, "the test utterances differ, 1 were scored for only one of CLSR-FT and whisper-base"),
    ],
)
def test_no_paired_interval_between_what_cannot_be_compared(tree, change, reason):
    tree.system("base", BASE)
    tree.system("clsr", STUDENT if change else STUDENT[:-1], **change)
    html, _ = report(tree)
    assert numbers(tree)["notes"] == [f"No interval for the difference between CLSR-FT and whisper-base: {reason}."]
    assert numbers(tree)["systems"]["clsr"]["wer_minus_base_low"] is None
    assert "(no interval, see the notes)" in numbers(tree)["verdict"]
    assert reason in html


def test_missing_parts_are_left_out_and_said(tree):
    tree.system("base", BASE)
    tree.system("clsr", STUDENT).with_suffix(".utterances.jsonl").unlink()
    html, markdown = report(tree)
    for text in (html, markdown.replace("\\", "")):
        assert "clsr.utterances.jsonl is not there" in text
        assert "clsr/curve.jsonl is not there: the learning curve of CLSR-FT is left out" in text
        assert "What changed most" not in text
        assert "Where the gates send tokens" not in text
    assert numbers(tree)["systems"]["clsr"]["wer_low"] is None


@pytest.mark.parametrize(("system", "missing"), [("base", "no student"), ("clsr", "no base model")])
def test_one_system_alone_has_a_report(tree, system, missing):
    tree.system(system, BASE)
    report(tree)
    assert f"there is {missing} among the results" in numbers(tree)["verdict"]


def test_curves_have_a_row_a_step_empty_where_absent(tree):
    tree.system("base", BASE)
    training = {
        "step": 10,
        "epoch": 0.5,
        "loss": 3.5,
        "ce": 2.5,
        "kd": 0.5,
        "gate": 0.1,
        "gate_mean": 0.4,
        "learning_rate": 1e-4,
    }
    tree.curve("clsr-kd", [training, {"step": 10, "epoch": 0.5, "validation_wer": 0.61, "validation_cer": 0.3}])
    tree.curve("full", [{"step": 5, "epoch": 0.2, "loss": 2.0, "ce": 2.0}])
    html, _ = report(tree)
    header = "step,epoch,loss,ce,kd,gate_mean,validation_wer\n"
    assert (tree.out / "curves/cs-clsr-kd.csv").read_text("utf-8") == header + "10,0.5,3.5,2.5,0.5,0.4,0.61\n"
    assert (tree.out / "curves/cs-full.csv").read_text("utf-8") == header + "5,0.2,2.0,2.0,,,\n"
    assert "Validation WER (%)" in html


def test_the_curve_of_a_run_for_several_languages_is_each_ones(tree):
    for language in ("cs", "nl"):
        tree.system("base", BASE, language=language)
        tree.system("clsr", STUDENT, language=language)
    wers = {"validation_wer": 0.5, "validation_wer_cs": 0.6, "validation_wer_nl": 0.4}
    tree.curve("clsr", [{"step": 3, "loss": 2.0, "ce": 2.0}, {"step": 3, **wers}], language="cs+nl")
    tree.curve("full", [{"step": 1, **wers}], language="cs+nl")
    tree.curve("full", [{"step": 2, "validation_wer": 0.3}], language="nl")
    html, _ = report(tree)
    assert "curve.jsonl is not there" not in html
    last = {path.stem: path.read_text("utf-8").splitlines()[-1] for path in (tree.out / "curves").iterdir()}
    assert last == {
        "cs-clsr": "3,,2.0,2.0,,,0.6",
        "nl-clsr": "3,,2.0,2.0,,,0.4",
        "cs-full": "1,,,,,,0.6",
        "nl-full": "2,,,,,,0.3",
    }


def test_languages_and_corpora_have_an_overview_and_a_summary(tree):
    for language, corpus, further in (("cs", "fish", False), ("cs", "fleurs", True), ("ca", "common-voice", False)):
        tree.system("base", BASE, language, corpus, further)
        tree.system("clsr", STUDENT, language, corpus, further)
    tree.system("teacher", [1] * 10, model="openai/whisper-large-v2")
    html, markdown = report(tree)
    overview = markdown.split("## Catalan")[0]
    assert [line.split(" | ")[:2] for line in overview.splitlines() if "(c" in line] == [
        ["| Catalan (ca)", "common-voice"],
        ["| Czech (cs)", "fish"],
        ["| Czech (cs)", "fleurs"],
    ]
    assert html.index("Overview") < html.index('id="ca"') < html.index('id="cs"')
    text = format_summary(tree.out)
    assert text == format_summary(tree.out / "comparison.json")
    assert text == format_summary(json.loads((tree.out / "comparison.json").read_text("utf-8")))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    czech = lines.index("Czech (cs): fish, test")
    table = lines[czech + 1 : czech + 6]
    assert [line.split("  ")[0] for line in table] == [
        "system",
        table[1],
        "whisper-base",
        "teacher (whisper-large-v2)",
        "CLSR-FT",
    ]
    assert len({len(line) for line in table}) == 1
    assert re.search(r"CLSR-FT +38\.0 +\S+ to \S+ +\S+ +-32\.0 \(-\S+ to -\S+\) +38\.0 +50$", table[-1])


def test_no_results_says_what_makes_them(tree):
    with pytest.raises(PipelineError, match="pipeline evaluate --lang cs"):
        report(tree)


@pytest.mark.parametrize(
    ("change", "field"),
    [({"wer": None}, "'wer'"), ({"cer": float("nan")}, "'cer'"), ({"gates": {"layer": 0.5}}, "'gates.layer")],
)
def test_broken_fields_name_file_and_field(tree, change, field):
    path = tree.system("base", BASE, **change)
    with pytest.raises(PipelineError) as error:
        report(tree)
    assert str(path) in str(error.value)
    assert f"field {field}" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_does_not_fit_its_place_is_refused(tree):
    path = tree.system("base", BASE, language="cs")
    path.rename(path.with_name("full.json"))
    with pytest.raises(PipelineError, match=r"full\.json: system is 'base', expected 'full'"):
        report(tree)


def test_utterances_of_another_run_are_refused(tree):
    path = tree.system("base", BASE)
    rows = path.with_suffix(".utterances.jsonl")
    rows.write_text("".join(rows.read_text("utf-8").splitlines(keepends=True)[1:]), "utf-8")
    with pytest.raises(PipelineError, match="9 utterances with 45 words, expected 10 with 50"):
        report(tree)
    rows.write_text(rows.read_text("utf-8").replace('"hypothesis"', '"other"'), "utf-8")
    with pytest.raises(PipelineError, match=r"base\.utterances\.jsonl, line 1: field 'hypothesis'"):
        report(tree)


def test_a_broken_curve_names_its_line(tree):
    tree.system("base", BASE)
    tree.curve("clsr", [{"step": 1, "loss": 2.0}, {"loss": 2.0}])
    with pytest.raises(PipelineError, match=r"curve\.jsonl, line 2: field 'step'"):
        report(tree)


def test_a_further_corpus_goes_by_the_name_of_its_file(tree):
    for further in (False, True):
        tree.system("base", BASE, corpus="elsewhere" if further else "own", further=further)
    path = tree.metrics / "cs" / "base@elsewhere.json"
    path.write_text(path.read_text("utf-8").replace('"elsewhere"', '"own"'), "utf-8")
    report(tree)
    assert numbers(tree, corpus="own").keys() == numbers(tree, corpus="elsewhere").keys()
    path.rename(path.with_name("base@own.json"))
    with pytest.raises(PipelineError, match=r"base@own\.json: corpus is 'own', as in .*base\.json"):
        report(tree)


THAI = "กขคงจฉชซฌญ"  # ten letters; the base has every second wrong, the student one


def test_a_language_without_spaces_goes_by_characters(tree):
    tree.system("base", None, "th", texts=[(THAI, "กถคถจถชถฌถ"), (THAI, "กถคถจถชถฌถ")])
    tree.system("clsr", None, "th", texts=[(THAI, "ถขคงจฉชซฌญ"), (THAI, THAI)])
    tree.system("base", BASE)
    tree.system("clsr", STUDENT)
    html, markdown = report(tree)
    found = numbers(tree, "th")
    assert found["rate"] == "cer"
    assert found["systems"]["clsr"]["cer_minus_base"] == pytest.approx(-0.45)
    assert found["systems"]["clsr"]["cer_low"] == 0.0
    assert not {"wer_low", "wer_minus_base"} & set(found["systems"]["clsr"])
    assert found["verdict"].startswith("CLSR-FT is 45.0 points of CER below whisper-base")
    thai = markdown.split("## Thai (th)")[1].split("## How")[0]
    heads = next(line for line in thai.splitlines() if line.startswith("| System"))
    assert heads.split(" | ")[1:4] == ["CER %", "95 % interval", "Cluster error rate %"]
    assert "Sub / del / ins of clusters | Characters (utterances) | Basic CER %" in heads
    assert "u00: 5 → 1 character errors, 10 characters" in thai
    assert "figures/th-fish-cer.svg" in thai
    assert "WER with" not in thai
    overview = [line.split(" | ")[2:6] for line in markdown.splitlines() if line.startswith(("| Czech", "| Thai"))]
    assert overview == [["WER", "CLSR-FT", "38.0", "70.0"], ["CER", "CLSR-FT", "5.0", "50.0"]]
    text = format_summary(tree.out).split("Thai (th)")[1].splitlines()
    heads = " ".join(text[1].split())
    assert heads == "system CER % 95 % interval clusters % vs base (95 %) basic CER characters"
    assert "a cluster error rate is no WER" in html


def test_the_best_student_and_rivals_are_found_by_the_leading_rate(tree):
    """`lora` has fewer clusters wrong, but more characters."""
    base = "ก้ ข้ ค้ ง้"
    tree.system("base", None, "th", texts=[(base, "")])
    tree.system("clsr", None, "th", texts=[(base, "กข ค้ ง้")])
    tree.system("lora", None, "th", texts=[(base, "ขิ่์ ข้ ค้ ง้")])
    report(tree)
    systems = numbers(tree, "th")["systems"]
    assert (systems["clsr"]["wer"], systems["lora"]["wer"]) == (0.5, 0.25)
    assert (systems["clsr"]["cer"], systems["lora"]["cer"]) == (0.25, 0.5)
    assert "does better" not in numbers(tree, "th")["verdict"]


def test_basic_rates_stand_beside(tree):
    reference = "மேசை மீது"
    tree.system("base", None, "ta", texts=[(reference, "மேசை மேது")] * 2)
    tree.system("clsr", None, "ta", texts=[(reference, reference)] * 2, basic_cer=None)
    html, markdown = report(tree)
    systems = numbers(tree, "ta")["systems"]
    assert (systems["base"]["wer"], systems["base"]["basic_wer"]) == (0.5, 0.0)
    row = next(line for line in markdown.splitlines() if line.startswith("| whisper-base | 50.0"))
    assert row.split(" | ")[7] == "0.0"
    setup = next(line for line in markdown.splitlines() if line.startswith("| CLSR-FT | openai"))
    assert setup.split(" | ")[3:] == ["marks-1", "7", "0.0", "-", "0.0", "0.0 |"]
    assert "Basic WER" in html
    lines = format_summary(tree.out).splitlines()
    assert "basic WER" in lines[1]
    assert re.search(r"^whisper-base +50\.0 .* 0\.0 +4$", lines[3])


def test_hypotheses_that_did_not_end_are_said_beside_loops(tree):
    tree.system("base", BASE, loops=2, unended=3)
    tree.system("clsr", STUDENT, unended=1)
    tree.system("teacher", [1] * 10, model="openai/whisper-large-v2")
    html, _ = report(tree)
    assert "Hypotheses that ended in a loop, and were cut at it: 2 of whisper-base." in html
    assert "Hypotheses that stopped at the token limit before their end: 3 of whisper-base, 1 of CLSR-FT." in html
    assert numbers(tree)["systems"]["base"]["unended"] == 3


def test_loops_that_were_left_are_not_called_cut(tree):
    tree.system("base", BASE, loops=2, cut_loops=False)
    tree.system("clsr", STUDENT, loops=1)
    html, _ = report(tree)
    assert "were cut at it: 1 of CLSR-FT." in html
    assert "were not cut (evaluate.cut_loops is false): 2 of whisper-base." in html


def test_rows_must_fit_what_they_are(tree):
    path = tree.system("base", BASE)
    rows = path.with_suffix(".utterances.jsonl")
    rows.write_text(rows.read_text("utf-8").replace('"group": "g"', '"unended": "perhaps"'), "utf-8")
    with pytest.raises(PipelineError, match=r"line 1: field 'unended'"):
        report(tree)
