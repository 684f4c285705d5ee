// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// Buttons and forms that call the API.
//
//   <button data-call="/api/..." data-body='{"a": 1}' data-verb="POST" data-confirm="Sure?" data-done="It was done.">
//   <form data-call="/api/..." data-confirm="..." data-done="..." data-next="/requests/{request.id}">
//
// A form's fields become the body's keys. data-type on a field says how its text is read: "number", "lines" (a list),
// "pairs" (NAME=VALUE lines, an object), "duration" ("2 h" → seconds), "flag" (a checkbox; the default for those).
// A name such as "a.b" is a key of an object. Empty fields without data-empty are left out. In data-call and data-next, {name} is a field's value, {name|else} says
// what stands for an empty one, and {a.b} is a key of the answer.
// What goes wrong is shown at the field that is to blame, else at the end of the form.

import { agreed } from "./ask.js";
import { call, CallError } from "./call.js";
import { refresh } from "./live.js";
import { tell } from "./messages.js";

const UNITS = { s: 1, sec: 1, m: 60, min: 60, h: 3600, hour: 3600, hours: 3600, d: 86400, day: 86400, days: 86400 };

/** "2 h", "1h30m", "45 min", "90" (minutes) → seconds; null when it is none. */
export function seconds(text) {
  const bare = text.trim().toLowerCase();
  if (/^\d+(\.\d+)?$/.test(bare)) {
    return Number(bare) * 60;
  }
  const parts = [...bare.matchAll(/(\d+(?:\.\d+)?)\s*([a-z]+)\s*/g)];
  if (!parts.length || parts.map((part) => part[0]).join("") !== bare || parts.some((part) => !(part[2] in UNITS))) {
    return null;
  }
  return parts.reduce((sum, part) => sum + Number(part[1]) * UNITS[part[2]], 0);
}

const READERS = {
  number: (text, field) => {
    if (Number.isNaN(Number(text))) throw new FieldError(field, "A number is expected.");
    return Number(text);
  },
  lines: (text) => text.split("\n").map((line) => line.trim()).filter(Boolean),
  pairs: (text, field) => {
    const pairs = {};
    for (const line of READERS.lines(text)) {
      const at = line.indexOf("=");
      if (at < 1) throw new FieldError(field, `"${line}" is not NAME=VALUE.`);
      pairs[line.slice(0, at).trim()] = line.slice(at + 1).trim();
    }
    return pairs;
  },
  duration: (text, field) => {
    const found = seconds(text);
    if (found === null) throw new FieldError(field, 'A duration is expected, such as "2 h" or "45 min".');
    return Math.round(found);
  },
};

class FieldError extends Error {
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

/** The object that a form's fields describe. Throws FieldError. */
export function bodyOf(form) {
  const body = {};
  for (const field of form.elements) {
    if (!field.name || field.disabled || field.closest("[hidden]")) continue;
    if (field.type === "checkbox" && !("value" in field.attributes)) {
      put(body, field.name, field.checked);
    } else if ((field.type === "checkbox" || field.type === "radio") && !field.checked) {
      continue;
    } else if (field.value === "" && !("empty" in field.dataset)) {
      continue;
    } else {
      const read = READERS[field.dataset.type];
      put(body, field.name, read ? read(field.value, field) : field.value);
    }
  }
  return body;
}

/** Set a key of `body`, or for a name such as "a.b" of an object in it. */
function put(body, name, value) {
  const parts = name.split(".");
  const last = parts.pop();
  for (const part of parts) body = body[part] ??= {};
  body[last] = value;
}

/** {a.b} in `text` becomes what `values` has there, encoded for a path. */
export function filled(text, values) {
  return text.replace(/\{([\w.]+)(?:\|(\w+))?\}/g, (_, path, otherwise) =>
    encodeURIComponent(path.split(".").reduce((value, key) => value?.[key], values) ?? otherwise ?? ""),
  );
}

/** Show at a form's field, or at its end, what is wrong; `field` is an element or null. */
export function complain(form, field, message) {
  calm(form);
  const line = document.createElement("p");
  line.className = "wrong";
  line.setAttribute("role", "alert");
  line.textContent = message;
  if (field && field.id) {
    line.id = `${field.id}-wrong`;
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", `${line.id} ${field.getAttribute("aria-describedby") ?? ""}`.trim());
    field.insertAdjacentElement("afterend", line);
    field.closest("details")?.setAttribute("open", "");
    field.focus();
  } else {
    form.append(line);
  }
}

/** Take away what was complained of. */
export function calm(form) {
  for (const line of form.querySelectorAll(".wrong")) line.remove();
  for (const field of form.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    const hints = (field.getAttribute("aria-describedby") ?? "").split(" ").filter((id) => id && id !== `${field.id}-wrong`);
    if (hints.length) field.setAttribute("aria-describedby", hints.join(" "));
    else field.removeAttribute("aria-describedby");
  }
}

async function press(button) {
  const { call: path, body, verb, confirm, done } = button.dataset;
  if (confirm && !(await agreed(confirm, button.dataset.yes || button.textContent.trim()))) {
    return;
  }
  button.disabled = true;
  button.setAttribute("aria-busy", "true");
  try {
    await call(path, { method: verb || "POST", body: body ? JSON.parse(body) : verb === "GET" ? undefined : {} });
    tell(done || `${button.textContent.trim()}: done.`);
    if (button.dataset.next) {
      location.assign(button.dataset.next);
    }
  } catch (error) {
    tell(error.message, "failed");
  }
  button.disabled = false;
  button.removeAttribute("aria-busy");
  await refresh();
}

async function submit(form, button) {
  calm(form);
  const { call: path, verb, done, next, confirm } = form.dataset;
  try {
    const body = bodyOf(form);
    if (confirm && !(await agreed(confirm, button?.textContent.trim()))) {
      return;
    }
    if (button) {
      button.disabled = true;
    }
    const said = await call(filled(path, body), { method: verb || "POST", body });
    form.dispatchEvent(new CustomEvent("done", { bubbles: true, detail: said }));
    if (next) {
      location.assign(filled(next, { ...body, ...said }));
      return;
    }
    tell(done || "Done.");
    form.closest("dialog")?.close();
    await refresh();
  } catch (error) {
    if (error instanceof FieldError) {
      complain(form, error.field, error.message);
    } else if (error instanceof CallError) {
      const shown = (name) => [...form.elements].find((field) => field.name === name && !field.closest("[hidden]"));
      complain(form, shown(error.field) ?? shown(error.field?.split(".")[0]), error.message);
    } else {
      throw error;
    }
  } finally {
    if (button) {
      button.disabled = false;
    }
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-call], button[data-dialog], button[data-close], button[data-copy]");
  if (!button) {
    return;
  }
  if ("close" in button.dataset) {
    button.closest("dialog").close();
  } else if ("call" in button.dataset) {
    press(button);
  } else if ("dialog" in button.dataset) {
    document.getElementById(button.dataset.dialog).showModal();
  } else {
    copy(button);
  }
});

async function copy(button) {
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    tell("secret" in button.dataset ? "Copied." : `Copied: ${button.dataset.copy}`);
  } catch {
    tell("secret" in button.dataset ? "It can't be copied here: mark it." : `It can't be copied here: ${button.dataset.copy}`, "failed");
  }
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.call !== undefined) {
    event.preventDefault();
    submit(form, event.submitter);
  }
});

/* Forms that change the page's own address as soon as something is chosen: filters. */
document.addEventListener("change", (event) => {
  const form = event.target.form;
  if (form && "auto" in form.dataset && !event.target.hasAttribute("data-later")) {
    form.requestSubmit();
  }
});

/* What was chosen before this script was there counts too. */
for (const form of document.querySelectorAll("form[data-auto]")) {
  const chosen = [...form.querySelectorAll("select")].some((select) => {
    const given = [...select.options].findIndex((option) => option.defaultSelected);
    return select.selectedIndex !== Math.max(0, given);
  });
  if (chosen) {
    form.requestSubmit();
  }
}

/* Empty fields of a filter don't belong into the address. */
document.addEventListener("formdata", (event) => {
  if (event.target.method === "get") {
    for (const name of new Set(event.formData.keys())) {
      const given = event.formData.getAll(name).filter(Boolean);
      event.formData.delete(name);
      for (const value of given) event.formData.append(name, value);
    }
  }
});

/* Nor do those of a form that was sent before this script was there. */
if (document.querySelector('form[method="get"]')) {
  const all = [...new URLSearchParams(location.search)];
  const given = all.filter(([, value]) => value);
  if (given.length < all.length) {
    const query = new URLSearchParams(given).toString();
    history.replaceState(history.state, "", location.pathname + (query ? `?${query}` : "") + location.hash);
  }
}
