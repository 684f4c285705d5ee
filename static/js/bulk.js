// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// Many things at a time: which ones are selected, and one call for each of them with what came of it.
//
// A table whose rows can be selected has <input type="checkbox" data-pick value="..."> in each row and one with
// data-pick-all in its head. A range is selected with Shift (a click or the space bar); arrows lead from row to row.

import { onUpdate, refresh } from "./live.js";

/** What is selected in a table, by the values of its checkboxes; kept in this tab under `key`, also on other pages of it. */
export class Selection {
  /** `table` is an element that stays while its rows come and go; `changed` is called whenever another set is selected. */
  constructor(table, key, changed) {
    this.table = table;
    this.key = key;
    this.changed = changed;
    this.chosen = new Set(JSON.parse(sessionStorage.getItem(key) || "[]"));
    this.anchor = null;
    table.addEventListener("click", (event) => this.#clicked(event));
    table.addEventListener("keydown", (event) => this.#pressed(event));
    onUpdate(() => this.show());
  }

  get size() {
    return this.chosen.size;
  }

  values() {
    return [...this.chosen];
  }

  has(value) {
    return this.chosen.has(value);
  }

  /** Have these selected and no others. */
  set(values) {
    this.chosen = new Set(values);
    this.#keep();
  }

  clear() {
    this.set([]);
  }

  boxes() {
    return [...this.table.querySelectorAll("input[data-pick]")];
  }

  /** How many of those selected have a row here. */
  shown() {
    return this.boxes().filter((box) => this.chosen.has(box.value)).length;
  }

  /** Whether all rows here are selected. */
  isFull() {
    const boxes = this.boxes();
    return boxes.length > 0 && boxes.every((box) => this.chosen.has(box.value));
  }

  /** Make the checkboxes say what is selected. */
  show() {
    for (const box of this.boxes()) {
      box.checked = this.chosen.has(box.value);
      box.closest("tr")?.classList.toggle("selected", box.checked);
    }
    const all = this.table.querySelector("input[data-pick-all]");
    if (all) {
      const here = this.shown();
      all.checked = this.isFull();
      all.indeterminate = here > 0 && !all.checked;
    }
    this.changed(this);
  }

  #keep() {
    if (this.chosen.size) {
      sessionStorage.setItem(this.key, JSON.stringify([...this.chosen]));
    } else {
      sessionStorage.removeItem(this.key);
    }
    this.show();
  }

  #pick(boxes, wanted) {
    for (const box of boxes) {
      if (wanted) this.chosen.add(box.value);
      else this.chosen.delete(box.value);
    }
    this.#keep();
  }

  #clicked(event) {
    const box = event.target;
    if (!(box instanceof HTMLInputElement)) {
      return;
    }
    if ("pickAll" in box.dataset) {
      this.#pick(this.boxes(), box.checked);
    } else if ("pick" in box.dataset) {
      const boxes = this.boxes();
      const here = boxes.indexOf(box);
      const there = event.shiftKey ? boxes.findIndex((other) => other.value === this.anchor) : -1;
      const range = there < 0 ? [box] : boxes.slice(Math.min(here, there), Math.max(here, there) + 1);
      this.anchor = box.value;
      this.#pick(range, box.checked);
    }
  }

  #pressed(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !event.target.matches("input[data-pick]")) {
      return;
    }
    const boxes = this.boxes();
    const next = boxes[boxes.indexOf(event.target) + step];
    if (next) {
      event.preventDefault();
      next.focus();
    }
  }
}

/** Call `work(item)` for each item, at most `concurrency` at a time, as long as `goesOn()`; `done(item, error)` tells of each. */
export async function each(items, work, { concurrency = 6, goesOn = () => true, done = () => {} } = {}) {
  const left = [...items];
  const next = async () => {
    while (left.length && goesOn()) {
      const item = left.shift();
      try {
        await work(item);
        done(item, null);
      } catch (error) {
        done(item, error);
      }
    }
  };
  await Promise.all(Array.from({ length: concurrency }, next));
}

/**
 * Do something with many things, in a dialog that shows how far it has come and what came of each.
 *
 * `title` is what is done, such as "Self-test of 30 devices"; `work(item)` is a promise of one call, whose value, if it
 * is a text, is shown as its result; `label(item)` is its name. Resolves to the items that failed when the dialog is closed.
 */
export function runAll({ title, items, work, label = String, concurrency = 6 }) {
  const dialog = document.createElement("dialog");
  dialog.className = "progress";
  dialog.setAttribute("aria-labelledby", "progress-title");
  dialog.innerHTML = `
    <h2 id="progress-title"></h2>
    <progress aria-labelledby="progress-title" value="0"></progress>
    <p role="status"></p>
    <div class="results" tabindex="0" role="region" aria-label="Results">
      <table><tbody data-failed></tbody><tbody data-done></tbody></table>
    </div>
    <div class="buttons">
      <button type="button" data-retry hidden></button>
      <button type="button" data-stop>Stop</button>
      <button type="button" class="main" data-end hidden>Close</button>
    </div>`;
  const part = (name) => dialog.querySelector(name);
  part("h2").textContent = title;
  document.body.append(dialog);
  dialog.showModal();

  let failed = [];
  let running = false;
  let stopped = false;

  async function run(batch) {
    let good = 0;
    let over = 0;
    running = true;
    stopped = false;
    failed = [];
    part("[data-failed]").replaceChildren();
    part("progress").max = batch.length;
    part("[data-retry]").hidden = part("[data-end]").hidden = true;
    part("[data-stop]").hidden = false;
    part("[data-stop]").disabled = false;
    part("[data-stop]").focus();
    const tell = (end = "") => {
      part("progress").value = over;
      const bad = failed.length ? `, ${failed.length} failed` : "";
      part("p").textContent = `${over} of ${batch.length}: ${good} done${bad}${end}`;
    };
    tell();
    await each(batch, async (item) => line(part("[data-done]"), label(item), (await work(item)) || "done", "done"), {
      concurrency,
      goesOn: () => !stopped,
      done: (item, error) => {
        over += 1;
        if (error) {
          failed.push(item);
          line(part("[data-failed]"), label(item), error.message, "failed");
        } else {
          good += 1;
        }
        tell();
      },
    });
    running = false;
    const rest = batch.length - over;
    tell(rest ? `. Stopped: ${rest} left as ${rest === 1 ? "it was" : "they were"}.` : ".");
    part("[data-stop]").hidden = true;
    part("[data-end]").hidden = false;
    part("[data-retry]").hidden = !failed.length;
    part("[data-retry]").textContent = failed.length === 1 ? "Try the failed one again" : `Try the ${failed.length} failed ones again`;
    part("[data-end]").focus();
    refresh();
  }

  part("[data-stop]").addEventListener("click", () => {
    stopped = true;
    part("[data-stop]").disabled = true;
  });
  part("[data-retry]").addEventListener("click", () => run(failed));
  part("[data-end]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("cancel", (event) => {
    if (running) {
      event.preventDefault();
    }
  });
  run(items);
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(failed);
    });
  });
}

function line(body, name, text, kind) {
  const row = body.insertRow();
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = name;
  const said = document.createElement("td");
  said.className = kind;
  said.textContent = text;
  row.append(head, said);
}
