// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// Logs that go on by themselves (templates/log_panel.html): every two seconds the lines since the last one are fetched.
// The newest line is at the bottom and stays in view, unless the person has scrolled up.

import { call } from "./call.js";
import { now } from "./times.js";

const PAUSE = 2000;
const FIRST = 200;
const OLDER = 500;
const MOST = 2000;
const ALL_AT_ONCE = 5000;

class Log {
  constructor(panel) {
    this.source = panel.dataset.log;
    this.parts = {};
    for (const element of panel.querySelectorAll("[data-part]")) {
      this.parts[element.dataset.part] = element;
    }
    this.lines = []; // { id, timestamp, source, message, element }, oldest first
    this.last = 0;
    this.began = false; // whether the oldest line of all is here
    this.paused = false;
    this.sources = new Set();
    const { filters, pause, save, end, older, lines } = this.parts;
    filters.addEventListener("submit", (event) => event.preventDefault());
    filters.addEventListener("input", () => this.filter());
    pause.addEventListener("click", () => this.pause());
    save.addEventListener("click", () => this.save(this.lines.filter((line) => !line.element.hidden)));
    this.parts["save-all"].addEventListener("click", () => this.saveAll());
    end.addEventListener("click", () => this.toEnd());
    older.addEventListener("click", () => this.loadOlder());
    lines.addEventListener("scroll", () => this.showEnd());
    document.addEventListener("visibilitychange", () => this.look());
    this.keepLooking();
  }

  async keepLooking() {
    await this.look();
    setTimeout(() => this.keepLooking(), PAUSE);
  }

  /** Fetch what has been written since; nothing while the page is hidden or the log paused, or somebody does so. */
  async look() {
    if (document.hidden || this.paused || this.looking) {
      return;
    }
    this.looking = true;
    try {
      const first = this.last === 0;
      const most = first ? FIRST : MOST;
      const lines = await this.ask(`after=${this.last}&limit=${most}`);
      if (lines.length === most) {
        // There may be more between these and the last one.
        this.drop(this.lines.length);
        this.began = false;
      } else if (first) {
        this.began = true;
      }
      if (lines.length) {
        this.append(lines);
      }
      this.tell();
    } catch (error) {
      this.tell(`${error.message} Trying again…`);
    }
    this.looking = false;
  }

  async ask(query) {
    return (await call(`${this.source}?${query}`, { method: "GET" })).log;
  }

  append(lines) {
    const box = this.parts.lines;
    const sticks = this.isAtEnd();
    const made = lines.map((line) => this.made(line));
    this.lines.push(...made);
    this.last = lines.at(-1).id;
    box.append(...made.map((line) => line.element));
    this.drop(this.lines.length - MOST);
    if (sticks) {
      box.scrollTop = box.scrollHeight;
    }
    this.showEnd();
  }

  /** Take the oldest `count` lines out of the page; what is in view stays where it is. */
  drop(count) {
    if (count <= 0) {
      return;
    }
    const box = this.parts.lines;
    const before = box.scrollHeight;
    for (const line of this.lines.splice(0, count)) {
      line.element.remove();
    }
    this.began = false;
    box.scrollTop -= before - box.scrollHeight;
  }

  async loadOlder() {
    const { older, lines: box } = this.parts;
    older.disabled = true;
    try {
      const lines = await this.ask(`before=${this.lines[0].id}&limit=${OLDER}`);
      const made = lines.map((line) => this.made(line));
      const before = box.scrollHeight;
      this.lines.unshift(...made);
      box.prepend(...made.map((line) => line.element));
      box.scrollTop += box.scrollHeight - before;
      this.began = lines.length < OLDER;
      this.tell();
    } catch (error) {
      this.tell(error.message);
    }
    older.disabled = false;
  }

  /** A line with its element. */
  made(line) {
    const element = document.createElement("div");
    element.className = "line";
    const time = document.createElement("time");
    time.dateTime = `${line.timestamp}Z`;
    const today = new Date(now()).toISOString().slice(0, 10);
    time.textContent = line.timestamp.replace(`${today}T`, "").replace("T", " ");
    time.title = `${line.timestamp.replace("T", " ")} UTC`;
    const source = document.createElement("b");
    source.textContent = line.source;
    const message = document.createElement("span");
    message.textContent = line.message;
    element.append(time, " ", source, " ", message);
    if (!this.sources.has(line.source)) {
      this.sources.add(line.source);
      const option = new Option(line.source, line.source);
      this.parts.filters.elements.source.append(option);
    }
    const full = { ...line, element };
    element.hidden = !this.fits(full);
    return full;
  }

  fits(line) {
    const { text, source } = this.parts.filters.elements;
    return (
      (!source.value || line.source === source.value) &&
      `${line.source} ${line.message}`.toLowerCase().includes(text.value.trim().toLowerCase())
    );
  }

  filter() {
    const sticks = this.isAtEnd();
    for (const line of this.lines) {
      line.element.hidden = !this.fits(line);
    }
    if (sticks) {
      this.toEnd();
    }
    this.tell();
  }

  pause() {
    this.paused = !this.paused;
    this.parts.pause.setAttribute("aria-pressed", String(this.paused));
    this.parts.pause.textContent = this.paused ? "Go on" : "Pause";
    this.tell();
    this.look();
  }

  isAtEnd() {
    const box = this.parts.lines;
    return box.scrollHeight - box.scrollTop - box.clientHeight < 30;
  }

  toEnd() {
    this.parts.lines.scrollTop = this.parts.lines.scrollHeight;
    this.showEnd();
  }

  showEnd() {
    this.parts.end.hidden = this.isAtEnd();
  }

  /** Say what is shown, and what else there is. */
  tell(trouble = "") {
    const shown = this.lines.filter((line) => !line.element.hidden).length;
    const all = this.lines.length;
    const count = shown === all ? (all === 1 ? "1 line" : `${all} lines`) : `${shown} of ${all} lines`;
    this.parts.status.textContent = trouble || (all ? count + (this.paused ? ", paused" : "") : "Nothing was written yet.");
    const full = all >= MOST;
    this.parts.older.hidden = this.began || full || !all;
    this.parts.beginning.textContent = !all
      ? ""
      : this.began
        ? "This is all there is."
        : full
          ? "The page keeps no more lines than these: download all to see older ones."
          : "";
  }

  async saveAll() {
    const button = this.parts["save-all"];
    button.disabled = true;
    try {
      const parts = [];
      let before = Number.MAX_SAFE_INTEGER;
      for (;;) {
        const lines = await this.ask(`before=${before}&limit=${ALL_AT_ONCE}`);
        parts.unshift(lines);
        if (lines.length < ALL_AT_ONCE) break;
        before = lines[0].id;
        this.tell(`${parts.length * ALL_AT_ONCE} lines were fetched…`);
      }
      this.save(parts.flat());
      this.tell();
    } catch (error) {
      this.tell(error.message);
    }
    button.disabled = false;
  }

  /** Have the browser keep lines as a text file. */
  save(lines) {
    const text = lines.map((line) => `${line.timestamp}Z ${line.source}: ${line.message}\n`).join("");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    link.download = `${this.source.split("/").filter((part) => part && part !== "api" && part !== "log").join("-")}.log`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
}

for (const panel of document.querySelectorAll("[data-log]")) {
  new Log(panel);
}
