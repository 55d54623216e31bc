"""docs/tutorial.md as a newcomer reads it: every command of the page, and what it prints."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from makers import make_tiny_whisper, run, speaking
from sources import MODULES, ROOT

from stages.shared.whisper.models import load_whisper

PAGE = ROOT / "docs/tutorial.md"
BLOCK = re.compile(r"^```(sh|output|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+]?\d[\d.,]*")
PROGRESS = re.compile(r".*: \d+/\d+ (utterances|steps|records), ")  # how many such lines there are, time decides
ANYTHING = "…"
TEXTS = ["Demat!", "Kenavo.", "Trugarez.", "Mat eo.", "Ya.", "Emañ o tont."]
SPEAKERS, CLIPS = ["Annaig", "Bleiz", "Katell", "Denez", "Enora", "Fañch", "Gwenn", "Herve", "Ivona", "Jakez"], 40


def make_recordings(folder: Path) -> None:
    """What the page says is there: MP3s, a table of a spreadsheet with columns of its own, two rows that cannot be read."""
    folder.mkdir()
    rows = ["File;Sentence;Reader"]
    for number in range(1, CLIPS + 2):
        name = "41.mp3" if number > CLIPS else f"{number:03d}.mp3"
        time = np.arange(int(16_000 * (0.5 + 0.01 * number))) / 16_000
        soundfile.write(folder / name, 0.1 * np.sin(2 * np.pi * (150 + 20 * number) * time), 16_000)
        rows.append(f"{number:03d}.mp3;{TEXTS[number % len(TEXTS)]} {number};{SPEAKERS[number % len(SPEAKERS)]}")
    (folder / "phone.m4a").write_bytes(b"\0\0\0\x18ftypM4A " + bytes(200))
    rows.append(f"phone.m4a;{TEXTS[0]};{SPEAKERS[0]}")
    (folder / "transcripts.csv").write_text("\r\n".join(rows) + "\r\n", encoding="utf-8-sig")  # as Excel saves it


def make_model(folder: Path, seed: int) -> None:
    """A tiny model where the page names one of the hub: a folder of that name is taken first."""
    whisper = speaking(
        load_whisper(str(make_tiny_whisper(folder, seed, width=16, positions=28))), listen=20, end=2.5, seed=seed
    )
    whisper.model.save_pretrained(folder)


def run_block(commands: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> tuple[str, int]:
    """What the block's lines print, and the exit status of the last one."""
    status = 0
    for line in commands.splitlines():
        if line.startswith("pipeline "):
            assert not re.search(r"""["'|<>]""", line)
            with monkeypatch.context() as patch:
                patch.setenv("PATH", "")  # no ffmpeg there, which the page speaks of
                status = run(patch, *line.split()[1:])
        else:
            status = subprocess.run(["bash", "-c", line], check=False).returncode
    printed = capfd.readouterr()
    return printed.err + printed.out, status


def form(line: str) -> str:
    """The line without its figures, and without what aligns columns."""
    return " ".join(re.sub("-{3,}", "---", NUMBER.sub("0", line.removeprefix("\ufeff"))).split())


def matches(shown: str, printed: str) -> bool:
    """Whether each line of the page is printed but for its figures. A line of nothing but … stands for any lines."""
    lines = []
    for line in shown.splitlines():
        pattern = ".*".join(map(re.escape, form(line).split(ANYTHING)))
        lines.append(r"(?:.*\n)*" if line == ANYTHING else pattern + r"\n")
    found = (form(line) for line in printed.splitlines() if line.strip() and not PROGRESS.match(line))
    return re.fullmatch("".join(lines), "".join(f"{line}\n" for line in found)) is not None


def test_every_command_prints_what_the_page_shows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    make_recordings(tmp_path / "recordings")
    make_model(tmp_path / "openai/whisper-small", seed=0)
    make_model(tmp_path / "openai/whisper-large-v2", seed=1)
    capfd.readouterr()
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) > 15
    printed, status, command = "", 0, ""
    for kind, text in blocks:
        if kind == "yaml":
            (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text, encoding="utf-8")
        elif kind == "sh":
            command = text
            printed, status = run_block(text, monkeypatch, capfd)
        else:
            assert matches(text, printed), f"{command}printed:\n{printed}\nThe page shows:\n{text}"
            assert (status == 1) == any(line.startswith("pipeline: ") for line in text.splitlines())
    assert (tmp_path / "report/index.html").exists()


def test_the_messages_that_it_explains_are_messages():
    table = PAGE.read_text(encoding="utf-8").partition("## What goes wrong first")[2]
    named = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    sources = "\n".join(path.read_text(encoding="utf-8") for path in MODULES)
    assert len(named) >= 8
    assert [text for text in named if text not in sources] == []


def test_other_words_are_seen():
    """Figures, spaces and progress may differ, words and lines may not."""
    assert matches("data: 12 utterances, 0.01 h", "prepare: 3/40 utterances, 2/s\ndata:  40 utterances,   1.2 h\n")
    assert matches("whisper-small  83.4  -\n…\nend", "whisper-small 101.0 -\none\ntwo\nend")
    assert matches("models/br/lora: … at step 3 of 4", "models/br/lora: 3.4 M, best at step 12 of 13")
    for printed in ("12 recordings", "12 utterances; left out: 1", "12 utterances\nwarning", ""):
        assert not matches("12 utterances", printed)
