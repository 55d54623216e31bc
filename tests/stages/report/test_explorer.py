"""The explorer's own code: its choice and order of utterances in node, and the page in a browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_utterances import HOSTILE, data

import stages.report

SCRIPT = Path(stages.report.__file__).parent / "explorer.js"
NODE = shutil.which("node")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--autoplay-policy=no-user-gesture-required",
]
BASE, STUDENT = [3, 1, 0, 5, 2], [1, 1, 2, 0, 3]  # word errors of u00 to u04


def node(code, *values):
    arguments = ", ".join(map(json.dumps, values))
    program = f"const e = require({json.dumps(str(SCRIPT))});\nconsole.log(JSON.stringify(({code})({arguments})))"
    done = subprocess.run([NODE, "-e", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(NODE is None, reason="no node on the PATH")
def test_views_choose_and_order(tree):
    tree.system("base", BASE)
    tree.system("clsr", STUDENT)
    tree.write()
    index, rows = data(tree)
    views = {
        ("all", "gained", ""): ["u03", "u00", "u01", "u04", "u02"],  # gains 5, 2, 0, -1, -2
        ("all", "lost", ""): ["u02", "u04", "u01", "u00", "u03"],
        ("all", "errors", ""): ["u04", "u02", "u00", "u01", "u03"],
        ("all", "id", ""): ["u00", "u01", "u02", "u03", "u04"],
        ("better", "id", ""): ["u00", "u03"],
        ("worse", "id", ""): ["u02", "u04"],
        ("differ", "id", ""): ["u00", "u02", "u03", "u04"],  # u01 is the same text
        ("right", "id", ""): ["u03"],
        ("substitutions", "id", ""): ["u00", "u01", "u02", "u04"],
        ("deletions", "id", ""): [],
        ("all", "id", "U02"): ["u02"],
        ("all", "id", " Špatně "): ["u00", "u01", "u02", "u03", "u04"],
        ("right", "id", "špatně tři"): [],
        ("all", "id", "s\u030cpatne\u030c s\u030cpatne\u030c s\u030cpatne\u030c čtyři"): ["u00", "u04"],
    }
    code = """(index, rows, views) => views.map(([show, order, search]) => e.selected(
        e.utterancesOf(index), {a: 0, b: 1, place: "", show, order, search}, (at) => e.textOf(rows[at])).map((u) => u.id))"""
    found = node(code, index, rows, list(views))
    assert dict(zip(views, found, strict=True)) == views


@pytest.mark.skipif(NODE is None, reason="no node on the PATH")
def test_what_a_system_has_no_result_for_comes_last_and_is_in_no_comparison(tree):
    tree.system("base", BASE)
    tree.system("clsr", STUDENT[:2])
    tree.write()
    index, rows = data(tree)
    code = """(index, shows) => shows.map((show) => e.selected(e.utterancesOf(index),
        {a: 0, b: 1, place: "", show, order: "errors", search: ""}).map((u) => u.id))"""
    shows = ["all", "differ", "better", "worse", "right", "loops"]
    assert node(code, index, shows) == [["u00", "u01", "u02", "u03", "u04"], ["u00"], ["u00"], [], [], []]


class Dom(HTMLParser):
    """The texts of a page by the class or the tag that holds them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.texts = [], [], {}
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, text):
        for tag in set(self.open):
            self.texts[tag] = self.texts.get(tag, "") + text


def browse(tree, tmp_path, script="", fragment=""):
    """Opens the page from disk, runs `script` in it when it is shown, and returns its DOM."""
    page = tree.out / "utterances/cs-fish.html"
    html = page.read_text("utf-8")
    code = f"""<script>(async () => {{
        const until = async (done) => {{ while (!done()) await new Promise((r) => setTimeout(r, 10)); }};
        const list = document.getElementById("utterances"), form = document.getElementById("view");
        const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {{key, bubbles: true}}));
        const choose = (name, value) => {{ form.elements[name].value = value;
            form.dispatchEvent(new Event("input", {{bubbles: true}})); }};
        const ids = () => [...list.children].map((article) => article.querySelector("h2").textContent);
        await until(() => document.getElementById("status").textContent);
        {script or "return"}
    }})().catch((error) => {{ document.title = "failed: " + error; }})</script></body>"""
    (page.with_name("opened.html")).write_text(html.replace("</body>", code), "utf-8")
    address = page.with_name("opened.html").as_uri() + fragment
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [BROWSER, *FLAGS, profile, "--virtual-time-budget=8000", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "<html" in done.stdout, done.stderr[-2000:]
    return done.stdout


def title(dom):
    return re.search(r"<title>([^<]*)</title>", dom)[1]


needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH")


@needs_browser
def test_hostile_texts_are_shown_and_run_nothing(tree, tmp_path):
    texts = [(text, other) for text, other in zip(HOSTILE, reversed(HOSTILE), strict=True)]
    tree.system("base", None, texts=texts)
    tree.system("clsr", None, texts=[(text, "slovo") for text, _ in texts])
    tree.write()
    dom = Dom(browse(tree, tmp_path))
    assert dom.texts["title"] == "Czech (cs), fish, test: utterances"
    assert not [tag for tag, _ in dom.tags if tag == "img"]
    for text in HOSTILE:
        assert text in dom.texts["dd"]
    assert "8 of 8 utterances" in dom.texts["p"]


@needs_browser
def test_keys_filters_and_recordings_work_from_disk(tree, tmp_path):
    tree.recordings(["jedna dva tři čtyři pět"] * 5, seconds=0.5)
    tree.system("base", BASE)
    tree.system("clsr", STUDENT)
    tree.write()
    script = """const seen = {first: ids()};
        press("j"); press("j"); press("j"); press("k");
        seen.focused = document.activeElement.getAttribute("aria-label");
        press("p");
        const player = document.activeElement.querySelector("audio");
        await until(() => player.duration > 0 || player.error);
        seen.playing = !player.paused; seen.seconds = player.duration;
        press("p"); seen.paused = player.paused;
        choose("show", "worse"); await until(() => list.children.length === 2); seen.worse = ids();
        choose("show", "all"); choose("search", "U03"); await until(() => ids().join() === "u03");
        press("/"); seen.field = document.activeElement.name;
        choose("search", ""); choose("two", ""); form.elements.a.value = "1"; choose("b", "0");
        await until(() => list.children.length === 5); seen.turned = ids();
        document.title = JSON.stringify(seen);"""
    seen = json.loads(title(browse(tree, tmp_path, script)).replace("&quot;", '"'))
    assert seen == {
        "first": ["u03", "u00", "u01", "u04", "u02"],
        "focused": "u00",
        "playing": True,
        "seconds": 0.5,
        "paused": True,
        "worse": ["u04", "u02"],
        "field": "search",
        "turned": ["u02", "u04", "u01", "u00", "u03"],
    }


@needs_browser
def test_files_of_rows_are_loaded_as_they_are_needed(tree, tmp_path):
    """250 utterances are three files, which a search reads all; a link to one searches it."""
    tree.system("base", [1] * 250)
    tree.write()
    script = """const files = () => [...explorer.rows.keys()].sort();
        const seen = {first: files(), shown: list.children.length};
        for (let n = 0; n < 26; n += 1) press("j");
        await until(() => list.children.length === 50); seen.more = files();
        choose("order", "length"); choose("search", "čtyři pět"); await until(() => explorer.rows.size === 3);
        await until(() => explorer.found.length === 250); seen.all = document.getElementById("status").textContent;
        document.title = JSON.stringify(seen);"""
    seen = json.loads(title(browse(tree, tmp_path, script)).replace("&quot;", '"'))
    assert seen == {"first": [0], "shown": 25, "more": [0], "all": "250 of 250 utterances, 25 shown"}
    dom = browse(tree, tmp_path, fragment="#u149")
    assert re.findall(r"<article[^>]*aria-label=\"(\w+)\"", dom) == ["u149"]


@needs_browser
def test_a_missing_file_is_named(tree, tmp_path):
    tree.system("base", [1] * 5)
    tree.write()
    (tree.out / "utterances/cs-fish/rows-0.js").unlink()
    dom = browse(tree, tmp_path)
    assert "cs-fish/rows-0.js could not be read: keep the folder of the report together." in dom
