"""Which files of a folder are recordings, and what their transcripts are called."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cache import storage
from cache.errors import PipelineError
from stages.transcribe.recordings import Recording, find_recordings, transcript_names


def sound(path: Path, format: str = "WAV") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.ones(1600), 16_000, format=format)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "talks"
    sound(root / "b.WAV")
    sound(root / "a" / "talk.flac", "FLAC")
    sound(root / "without ending")
    (root / "broken.mp3").write_text("no sound")
    (root / "notes.txt").write_text("a text")
    (root / "a" / "empty").touch()
    return root


def test_a_folder_gives_its_recordings_in_order_and_names_the_rest(folder):
    """By what a file holds; one that is called a recording and cannot be read is not passed over."""
    said: list[str] = []
    found = find_recordings([folder], said.append)
    assert [one.name for one in found] == ["a/talk.flac", "b.WAV", "broken.mp3", "without ending"]
    assert [one.path for one in found] == [folder / one.name for one in found]
    assert said == [f"{folder}: 4 recordings; no audio, left out: 2 (a/empty, notes.txt)"]


def test_files_and_folders_keep_their_order(folder, tmp_path):
    single, missing = sound(tmp_path / "z.wav"), tmp_path / "missing.wav"
    found = find_recordings([single, folder / "a", missing], lambda line: None)
    assert [one.name for one in found] == ["z.wav", "talk.flac", "missing.wav"]


def test_many_other_files_are_counted(tmp_path):
    sound(tmp_path / "a.wav")
    for number in range(25):
        (tmp_path / f"{number:02d}.txt").write_text("text")
    said: list[str] = []
    find_recordings([tmp_path], said.append)
    assert "left out: 25 (00.txt" in said[0] and said[0].endswith("19.txt and 5 more)")


def test_a_folder_without_audio_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(PipelineError, match="none of its 1 files is audio"):
        find_recordings([tmp_path], lambda line: None)


def test_pipes_and_loops_of_links_do_no_harm(tmp_path):
    sound(tmp_path / "a.wav")
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "nowhere.wav").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe.wav")
    said: list[str] = []
    assert [one.name for one in find_recordings([tmp_path], said.append)] == ["a.wav"]
    assert "left out: 2 (nowhere.wav, pipe.wav)" in said[0]


def test_a_folder_in_a_store(tmp_path):
    root = storage.path("memory://talks-of-transcribe")
    sound(tmp_path / "a.wav")
    for name in ("x/a.wav", "b.wav"):
        root.fs.pipe_file(f"{root.path}/{name}", (tmp_path / "a.wav").read_bytes())
    root.fs.pipe_file(f"{root.path}/c.txt", b"text")
    said: list[str] = []
    found = find_recordings([root], said.append)
    assert [one.name for one in found] == ["b.wav", "x/a.wav"]
    assert found[1].path.read_bytes() == (tmp_path / "a.wav").read_bytes()
    assert said[0].endswith("left out: 1 (c.txt)")


def names(*given: str) -> list[str]:
    return transcript_names([Recording(Path(f"/{number}/{name}"), name) for number, name in enumerate(given)], ".srt")


def test_transcripts_are_called_like_their_recordings():
    assert names(
        "talk.mp3", "a/b.c/talk", "x.tar.wav", ".wav", "a/.wav", "..wav", "k\u016f\u0148 \n.wav", "-o.wav"
    ) == [
        *(
            "talk.srt",
            "a/b.c/talk.srt",
            "x.tar.srt",
            ".wav.srt",
            "a/.wav.srt",
            "..srt",
            "k\u016f\u0148 \n.srt",
            "-o.srt",
        )
    ]


def test_no_transcript_overwrites_another():
    assert names("talk.wav", "talk.mp3", "Talk.flac", "a/talk.wav") == [
        *("talk.wav.srt", "talk.mp3.srt", "Talk.flac.srt", "a/talk.srt")
    ]
    with pytest.raises(PipelineError, match=r"/0/talk.wav and /1/TALK.wav: both transcripts would be TALK.wav.srt"):
        names("talk.wav", "TALK.wav")
