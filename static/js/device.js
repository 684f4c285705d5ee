// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// The page of a device: dialogs that show what fits, hardware that is asked and answers, commands and what they gave.

import { complain } from "./actions.js";
import { call } from "./call.js";
import { refresh } from "./live.js";

const KEPT_CHECKS = 5;

/* Dialogs: data-fill gives fields their values, data-close closes, data-when="FIELD=VALUE" shows what belongs to a choice. */
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-fill], button[data-close], button[data-check]");
  if (!button) {
    return;
  }
  if ("close" in button.dataset) {
    button.closest("dialog").close();
  } else if ("check" in button.dataset) {
    check(button);
  } else {
    const form = document.getElementById(button.dataset.dialog).querySelector("form");
    for (const [name, value] of Object.entries(JSON.parse(button.dataset.fill))) {
      form.elements.namedItem(name).value = value;
    }
  }
});

function fit(form) {
  for (const part of form.querySelectorAll("[data-when]")) {
    const [name, value] = part.dataset.when.split("=");
    part.hidden = form.elements.namedItem(name).value !== value;
    part.disabled = part.hidden;
  }
}

for (const form of document.querySelectorAll("dialog form")) {
  form.addEventListener("change", () => fit(form));
  fit(form);
}

const state = document.getElementById("force-state");
state.addEventListener("change", () => {
  document.getElementById("force-meaning").textContent = state.selectedOptions[0].dataset.meaning ?? "";
});

function since(began) {
  const ms = performance.now() - began;
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

/* Asking the hardware: what was asked and what it answered, the latest first. */
async function check(button) {
  const { check: path, verb, good, bad } = button.dataset;
  const what = button.textContent.trim();
  const list = document.getElementById("checks");
  const line = document.createElement("li");
  line.textContent = `${what}: asking…`;
  line.className = "running";
  list.prepend(line);
  list.hidden = false;
  while (list.children.length > KEPT_CHECKS) {
    list.lastElementChild.remove();
  }
  button.disabled = true;
  const began = performance.now();
  let said;
  try {
    said = await call(path, { method: verb || "POST", body: verb === "GET" ? undefined : {} });
  } catch (error) {
    said = { success: false, reason: error.message };
  }
  button.disabled = false;
  const time = new Date().toISOString().slice(11, 19);
  line.className = said.success ? "good" : "bad";
  line.textContent = said.success
    ? `${what}: ${good}, after ${since(began)} (${time})`
    : `${what}: ${bad}${said.reason ? `: ${said.reason}` : ""}, after ${since(began)} (${time})`;
}

/** A command line as a list of arguments: quotes keep words together, a backslash keeps the next character. */
export function split(line) {
  const found = [];
  for (const [word] of line.matchAll(/(?:"(?:\\.|[^"\\])*"|'[^']*'|\\.|[^\s"'\\])+/g)) {
    found.push(
      word.replace(/"((?:\\.|[^"\\])*)"|'([^']*)'|\\(.)/g, (_, double, single, one) =>
        double !== undefined ? double.replace(/\\(.)/g, "$1") : (single ?? one),
      ),
    );
  }
  return found;
}

const command = document.getElementById("command");
if (command) {
  const { line, timeout } = command.elements;
  const results = document.getElementById("results");
  const before = [];
  let at = 0;

  command.addEventListener("submit", async (event) => {
    event.preventDefault();
    const text = line.value.trim();
    const words = split(text);
    if (!words.length) {
      complain(command, line, "A command is expected.");
      return;
    }
    before.push(text);
    at = before.length;
    line.value = "";
    const entry = document.createElement("div");
    const head = document.createElement("p");
    head.className = "running";
    head.textContent = `$ ${text} … runs`;
    entry.append(head);
    results.prepend(entry);
    const limit = Number(timeout.value) || 20;
    const began = performance.now();
    const end = (kind, said, output) => {
      head.className = kind;
      head.textContent = `$ ${text}`;
      const came = document.createElement("span");
      came.className = "hint";
      came.textContent = ` ${said}, after ${since(began)}`;
      head.append(came);
      if (output) {
        const box = document.createElement("pre");
        box.className = "log";
        box.tabIndex = 0;
        box.setAttribute("role", "region");
        box.setAttribute("aria-label", `Output of ${text}`);
        box.textContent = output;
        entry.append(box);
      }
    };
    try {
      const { assignee } = command.dataset;
      const body = { ...(assignee ? { assignee } : {}), command: words, timeout: limit };
      const said = await call(command.dataset.exec, { body, limit: (limit + 10) * 1000 });
      const code = said.return_code;
      const ended = code === null ? "no return code" : `return code ${code}`;
      end(code ? "bad" : "good", said.output ? ended : `${ended}, no output`, said.output);
    } catch (error) {
      end("bad", "failed", error.message);
    }
    refresh();
  });

  line.addEventListener("keydown", (event) => {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (step && before.length) {
      event.preventDefault();
      at = Math.min(before.length, Math.max(0, at + step));
      line.value = before[at] ?? "";
    }
  });
}
