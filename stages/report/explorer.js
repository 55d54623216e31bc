"use strict";
// The utterances of a test split: which are shown, in which order, and how. The page of each split names its data.
// Data come as scripts that call takeIndex and takeRows, since a page that is opened from disk may not fetch files.

const SHOWN = 25; // utterances that are added at a time
const WIDE = 30; // characters from which a wrong word may be broken into lines
const KINDS = {
  s: { tag: "ruby", spoken: "wrong: " },
  d: { tag: "del", spoken: "missing: " },
  i: { tag: "ins", spoken: "added: " },
};

/** Returns the utterances of an index as objects. at: the place in the order of the files of rows. */
function utterancesOf(index) {
  return index.utterances.map(([id, place, length, systems], at) => ({ id, place, length, systems, at }));
}

/** Returns the errors that system b saves, NaN where one of the two has no result. */
function gain(utterance, view) {
  const [a, b] = [utterance.systems[view.a], utterance.systems[view.b]];
  return a && b ? a[0] - b[0] : NaN;
}

const FILTERS = {
  all: () => true,
  differ: (u, v) => Boolean(u.systems[v.a] && u.systems[v.b]) && u.systems[v.a][5] !== u.systems[v.b][5],
  better: (u, v) => gain(u, v) > 0,
  worse: (u, v) => gain(u, v) < 0,
  right: (u, v) => u.systems[v.b]?.[0] === 0,
  substitutions: (u, v) => u.systems[v.b]?.[1] > 0,
  deletions: (u, v) => u.systems[v.b]?.[2] > 0,
  insertions: (u, v) => u.systems[v.b]?.[3] > 0,
  loops: (u, v) => u.systems[v.b]?.[4] > 0,
};

const ORDERS = {
  gained: (u, v) => -gain(u, v),
  lost: gain,
  errors: (u, v) => (u.systems[v.b] ? -u.systems[v.b][0] : NaN),
  rate: (u, v) => (u.systems[v.b] ? -u.systems[v.b][0] / Math.max(1, u.length) : NaN),
  length: (u) => -u.length,
  id: () => 0,
};

/** Returns the utterances of the view in its order. words: by place, the text to search; undefined where nothing is sought. */
function selected(utterances, view, words) {
  const sought = folded(view.search);
  const kept = utterances.filter(
    (u) =>
      FILTERS[view.show](u, view) &&
      (!view.place || u.place === view.place) &&
      (!sought || folded(`${u.id} ${u.place} ${words?.(u.at) ?? ""}`).includes(sought)),
  );
  const keyed = kept.map((u) => [ORDERS[view.order](u, view), u]);
  // NaN, a system without a result, comes last; equal ones by id
  keyed.sort(([k, u], [l, v]) => Number(Number.isNaN(k)) - Number(Number.isNaN(l)) || k - l || byId(u, v));
  return keyed.map(([, u]) => u);
}

function byId(u, v) {
  return u.id < v.id ? -1 : Number(u.id > v.id);
}

function folded(text) {
  return text.normalize("NFC").toLowerCase().trim();
}

/** Returns all texts of a row, to search in. */
function textOf(row) {
  const said = row.heard.map((heard) => (heard ? heard.marks.map(saidOf).join(" ") : ""));
  return [row.reference, ...said].join("\n");
}

function saidOf(mark) {
  return typeof mark === "string" ? mark : mark[1];
}

if (typeof module !== "undefined") module.exports = { FILTERS, ORDERS, selected, textOf, utterancesOf };

// The page. Texts are shown by textContent alone, so that none of them is ever read as markup.

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function hidden(text) {
  return element("span", { class: "spoken" }, text);
}

function marked(mark) {
  if (typeof mark === "string") return element("span", {}, mark);
  const [kind, said, meant] = mark;
  const { tag, spoken } = KINDS[kind];
  const wide = Math.max(said.length, meant.length) > WIDE ? "sub wide" : "sub";
  const shown = element(tag, kind === "s" ? { class: wide } : {}, hidden(spoken), kind === "d" ? meant : said);
  if (kind === "s") shown.append(element("rt", {}, hidden(" for "), meant));
  return shown;
}

function marksLine(heard, spaced) {
  const line = element("span", { class: "marks", dir: "auto" });
  heard.marks.forEach((mark, number) => line.append(spaced && number ? " " : "", marked(mark)));
  if (!heard.marks.length) line.append("(nothing)");
  if (heard.more) line.append(element("span", { class: "small" }, ` … and ${heard.more} more, not shown`));
  return line;
}

function expertLine(words) {
  const line = element("span", { dir: "auto" });
  for (const [word, share] of words) {
    const shown = { style: `--share: ${share}%`, class: word.length > WIDE ? "wide" : "" };
    line.append(element("ruby", shown, word, element("rt", {}, String(share))), " ");
  }
  return element("span", { class: "expert" }, element("span", { class: "small" }, "expert's share, %: "), line);
}

function countsOf(system, unit) {
  const [errors, ...kinds] = system;
  const named = ["wrong", "missing", "added"].map((name, kind) => (kinds[kind] ? `${kinds[kind]} ${name}` : ""));
  const listed = unit === "word" ? named.filter(Boolean).join(", ") : "";
  return `${errors} ${unit} ${errors === 1 ? "error" : "errors"}${listed ? `: ${listed}` : ""}`;
}

const explorer = {
  rows: new Map(), // by number of the file
  waiting: new Map(), // by number of the file, what to call when it has come

  takeIndex(index) {
    this.index = index;
    this.utterances = utterancesOf(index);
    this.start();
  },

  takeRows(number, rows) {
    this.rows.set(number, rows);
  },

  /** Loads a file of rows by a script element. Resolves when its rows are there. */
  load(number) {
    if (this.rows.has(number)) return Promise.resolve();
    if (!this.waiting.has(number)) {
      const source = `${encodeURIComponent(this.index.name)}/rows-${number}.js`;
      const loaded = new Promise((resolve, reject) => {
        const script = element("script", { src: source });
        script.onload = () => (this.rows.has(number) ? resolve() : reject(new Error(source)));
        script.onerror = () => reject(new Error(source));
        document.head.append(script);
      });
      this.waiting.set(number, loaded);
    }
    return this.waiting.get(number);
  },

  row(at) {
    return this.rows.get(Math.floor(at / this.index.rows))?.[at % this.index.rows];
  },

  start() {
    this.form = document.getElementById("view");
    this.list = document.getElementById("utterances");
    this.status = document.getElementById("status");
    this.more = document.getElementById("more");
    for (const [name, chosen] of [["a", 0], ["b", 1]]) {
      const options = this.index.systems.map((system, value) => element("option", { value }, system));
      this.form.elements[name].append(...options);
      this.form.elements[name].value = this.index.compared[chosen];
    }
    const places = [...new Set(this.utterances.map((u) => u.place))].filter(Boolean).sort();
    this.form.elements.place.append(...places.map((place) => element("option", { value: place }, place)));
    this.form.elements.place.closest("label").hidden = places.length < 2;
    try {
      this.form.elements.search.value = decodeURIComponent(location.hash.slice(1));
    } catch {} // a broken link shows all
    this.form.addEventListener("input", () => this.show());
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.more.addEventListener("click", () => this.add());
    document.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("play", (event) => this.pauseOthers(event.target), true);
    this.show();
  },

  view() {
    const fields = this.form.elements;
    return {
      a: Number(fields.a.value),
      b: Number(fields.b.value),
      show: fields.show.value,
      order: fields.order.value,
      place: fields.place.value,
      search: fields.search.value,
      two: fields.two.checked,
    };
  },

  /** Shows the view from its beginning. A later call overtakes one that still waits for files. */
  async show() {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const view = this.view();
    try {
      if (view.search.trim()) await this.loadAll(turn);
      if (turn !== this.turn) return;
      this.found = selected(this.utterances, view, (at) => textOf(this.row(at)));
      this.list.replaceChildren();
      await this.add();
    } catch (error) {
      this.failed(error);
    }
  },

  async loadAll(turn) {
    const files = Math.ceil(this.utterances.length / this.index.rows);
    for (let number = 0; number < files && turn === this.turn; number += 1) {
      if (!this.rows.has(number)) this.status.textContent = `Reading file ${number + 1} of ${files} to search it`;
      await this.load(number);
    }
  },

  /** Shows further utterances, and returns the first of them. */
  async add() {
    const turn = this.turn;
    const start = this.list.childElementCount;
    const next = this.found.slice(start, start + SHOWN);
    try {
      await Promise.all([...new Set(next.map((u) => Math.floor(u.at / this.index.rows)))].map((n) => this.load(n)));
    } catch (error) {
      return this.failed(error);
    }
    if (turn !== this.turn || start !== this.list.childElementCount) return null;
    const view = this.view();
    this.list.append(...next.map((utterance) => this.article(utterance, view)));
    const shown = this.list.childElementCount;
    const all = this.utterances.length;
    this.status.textContent = `${this.found.length} of ${all} utterances${shown < this.found.length ? `, ${shown} shown` : ""}`;
    this.more.hidden = shown >= this.found.length;
    return this.list.children[start];
  },

  failed(error) {
    this.status.textContent = `${error.message} could not be read: keep the folder of the report together.`;
    return null;
  },

  article(utterance, view) {
    const row = this.row(utterance.at);
    const saved = gain(utterance, view);
    const side = saved > 0 ? " better" : saved < 0 ? " worse" : "";
    const facts = [utterance.place, row.seconds && `${row.seconds.toFixed(1)} s`, `${utterance.length} ${this.index.lengths}`];
    const texts = element("dl", {}, element("dt", {}, "reference"), element("dd", { dir: "auto" }, row.reference));
    row.heard.forEach((heard, system) => {
      if (heard && (!view.two || system === view.a || system === view.b)) {
        texts.append(...this.heard(heard, system, utterance.systems[system], view));
      }
    });
    return element(
      "article",
      { class: `example${side}`, tabindex: "-1", "aria-label": utterance.id },
      element("h2", {}, element("bdi", {}, utterance.id)),
      element("p", { class: "small" }, facts.filter(Boolean).join(" · ")),
      this.player(row, utterance),
      texts,
    );
  },

  player(row, utterance) {
    if (!row.audio) return element("p", { class: "small" }, "The recording is not beside this page.");
    const source = `../audio/${encodeURIComponent(this.index.name)}/${row.audio}`;
    return element("audio", { controls: "", preload: "none", src: source, "aria-label": `Recording of ${utterance.id}` });
  },

  heard(heard, system, counts, view) {
    const role = system === view.a || system === view.b ? { class: "compared" } : {};
    const name = element("dt", role, this.index.systems[system]);
    const line = element("dd", role, marksLine(heard, this.index.unit === "word"));
    if (heard.reference) line.append(element("p", { class: "small", dir: "auto" }, `scored against: ${heard.reference}`));
    if (heard.expert) line.append(expertLine(heard.expert));
    const ending = heard.ending ? `, ${heard.ending}` : "";
    line.append(element("span", { class: "small counts" }, countsOf(counts, this.index.unit) + ending));
    return [name, line];
  },

  /** j, k: next and previous utterance. p: play or pause. /: search. */
  async key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    const act = { j: () => this.step(1), k: () => this.step(-1), p: () => this.play(), "/": () => this.search() }[event.key];
    if (act) {
      event.preventDefault();
      await act();
    }
  },

  current() {
    return document.activeElement.closest("article");
  },

  async step(by) {
    const here = this.current();
    let next = this.list.firstElementChild;
    if (here) next = by > 0 ? here.nextElementSibling : here.previousElementSibling;
    if (!next && by > 0 && !this.more.hidden) next = await this.add();
    next?.focus();
    next?.scrollIntoView({ block: "nearest" });
  },

  play() {
    const player = (this.current() ?? this.list.firstElementChild)?.querySelector("audio");
    if (player) return player.paused ? player.play() : player.pause();
  },

  search() {
    this.form.elements.search.focus();
  },

  pauseOthers(playing) {
    for (const other of document.querySelectorAll("audio")) if (other !== playing) other.pause();
  },
};
