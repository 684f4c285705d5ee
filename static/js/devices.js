// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// The list of devices: what is done with many of them at a time, comments that are edited in place, saved filters.

import { bodyOf, complain } from "./actions.js";
import { Selection, each, runAll } from "./bulk.js";
import { call } from "./call.js";
import { onUpdate, refresh } from "./live.js";
import { tell } from "./messages.js";
import { filter, savedLinks } from "./saved.js";

const bar = document.getElementById("bulk");
const list = document.getElementById("list");
const me = document.documentElement.dataset.me;
const many = (number, what = "device") => `${number} ${what}${number === 1 ? "" : "s"}`;
const path = (name, rest) => `/api/device/${encodeURIComponent(name)}/${rest}/`;
const by = me ? { assignee: me } : {};

savedLinks(document.getElementById("saved"), document.querySelector("#save form"));

/* --- The selection: it belongs to the filter, so that nothing is done to what the filter leaves out --- */

function filtered() {
  const query = new URLSearchParams(filter());
  query.delete("size");
  query.delete("sort");
  return query;
}

const selection = new Selection(list, `mozpool.selected:${location.pathname}?${filtered()}`, (now) => {
  const total = Number(list.dataset.total);
  const elsewhere = now.size - now.shown();
  const all = bar.querySelector("[data-all]");
  bar.hidden = now.size === 0;
  bar.querySelector("[data-count]").textContent = `${now.size} selected`;
  bar.querySelector("[data-elsewhere]").textContent = elsewhere ? `(${elsewhere} not on this page)` : "";
  all.hidden = !now.isFull() || now.size >= total;
  all.textContent = `Select all ${total} that match`;
});

bar.querySelector("[data-clear]").addEventListener("click", () => {
  selection.clear();
  list.querySelector("[data-pick-all]")?.focus();
});

bar.querySelector("[data-all]").addEventListener("click", async (event) => {
  event.target.disabled = true;
  try {
    // A key that filters nothing: without any, the answer would be the same.
    selection.set((await call(`/api/device/list/?${filtered()}`, { method: "GET" })).devices);
  } catch (error) {
    tell(error.message, "failed");
  }
  event.target.disabled = false;
});

/* --- What can be done --- */

/** What is to be done to a device, by the form's values. A text that it resolves to is shown as the result. */
const ACTIONS = {
  "self-test": (device) => call(path(device.name, "self-test"), { body: by }).then((said) => said.state),
  "power-cycle": (device) => call(path(device.name, "reboot"), { body: by }).then((said) => said.state),
  maintenance: (device) => call(path(device.name, "maintenance"), { body: by }).then((said) => said.state),
  image: (device, body) => call(path(device.name, "flash"), { body: { ...body, ...by } }).then((said) => said.state),
  online: (device) => call(path(device.name, "status"), { body: { status: "online" } }).then((said) => said.state),
  offline: (device, body) =>
    call(path(device.name, "status"), { body: { ...body, status: "offline" } }).then((said) => said.state),
  comments: (device, body) => call(path(device.name, "set-comments"), { body }).then(() => "replaced"),
  environment: (device, body) => call(path(device.name, "set-environment"), { body }).then(() => body.environment),
  labels: async (device, { how, change }) => {
    const now = how === "replace" ? {} : (await call(path(device.name, "details"), { method: "GET" })).labels;
    const labels = change(now);
    await call(path(device.name, "set-labels"), { body: { labels } });
    return Object.entries(labels).map((pair) => pair.join("=")).join(" ") || "no labels";
  },
  force: async (device, { state }) => {
    const from = device.state;
    try {
      await call(path(device.name, `state-change/${encodeURIComponent(from)}/to/${encodeURIComponent(state)}`), { body: {} });
    } catch (error) {
      if (error.status === 409) {
        // It has gone on since it was looked at: who tries again means the state that it is in now.
        device.state = (await call(path(device.name, "details"), { method: "GET" })).state;
      }
      throw error;
    }
    return `${from} → ${state}`;
  },
};

/** What a form says, made ready for ACTIONS. Throws an Error for the person. */
const READ = {
  labels: (body) => {
    const lines = (body.labels || "").split("\n").map((line) => line.trim()).filter(Boolean);
    const pairs = lines.map((line) => {
      const at = line.indexOf("=");
      if (at < 1 && !(body.how === "remove" && at < 0)) {
        throw new Error(`"${line}" is not NAME=VALUE.`);
      }
      return at < 0 ? [line, null] : [line.slice(0, at).trim(), line.slice(at + 1).trim()];
    });
    if (!pairs.length && body.how !== "replace") {
      throw new Error("Which labels?");
    }
    const change = {
      add: (now) => ({ ...now, ...Object.fromEntries(pairs) }),
      remove: (now) =>
        Object.fromEntries(
          Object.entries(now).filter(([name, value]) => !pairs.some((pair) => pair[0] === name && [null, value].includes(pair[1]))),
        ),
      replace: () => Object.fromEntries(pairs),
    }[body.how];
    return { how: body.how, change };
  },
};

let items = [];

/** The devices of these names as they are now. */
async function look(names) {
  const found = [];
  const parts = [];
  for (let at = 0; at < names.length; at += 200) {
    parts.push(names.slice(at, at + 200));
  }
  await each(
    parts,
    async (part) => {
      const query = new URLSearchParams(part.map((name) => ["name", name]));
      found.push(...(await call(`/api/device/list/?details=1&${query}`, { method: "GET" })).devices);
    },
    {
      done: (_, error) => {
        if (error) throw error;
      },
    },
  );
  return found;
}

/** Open the dialog of an action on devices. */
async function open(id, names) {
  try {
    items = await look(names);
  } catch (error) {
    tell(error.message, "failed");
    return;
  }
  if (!items.length) {
    tell("These devices are not there any more.", "failed");
    return;
  }
  const dialog = document.getElementById(`act-${id}`);
  const title = dialog.querySelector("[data-title]");
  title.textContent = `${title.dataset.title} ${items.length === 1 ? items[0].name : many(items.length)}`;
  warn(dialog);
  const states = dialog.querySelector("[data-states]");
  if (states) {
    states.textContent = `Now: ${counted(items.map((device) => device.state))}.`;
  }
  const text = dialog.querySelector("textarea[name=comments]");
  if (text) {
    text.value = items.length === 1 ? items[0].comments || "" : "";
  }
  dialog.showModal();
}

function counted(values) {
  const numbers = new Map();
  for (const value of values) numbers.set(value, (numbers.get(value) || 0) + 1);
  return [...numbers].sort((a, b) => b[1] - a[1]).map(([value, number]) => `${number} ${value}`).join(", ");
}

/** Say who has some of the devices now, where the action disturbs them. */
function warn(dialog) {
  const lent = items.filter((device) => device.request_id !== null);
  const line = dialog.querySelector("[data-lent]");
  line.hidden = !("disturbs" in dialog.dataset) || !lent.length;
  const people = [...new Set(lent.map((device) => device.assignee))].sort();
  const named = people.slice(0, 4).join(", ") + (people.length > 4 ? ` and ${people.length - 4} more` : "");
  const which =
    items.length === 1 ? "It is lent right now" : `${lent.length} of them ${lent.length === 1 ? "is" : "are"} lent right now`;
  line.textContent = `${which}, to ${people.length === 1 ? "one person" : `${people.length} people`} (${named}). ${dialog.dataset.disturbs || ""}`;
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  const id = form.dataset.act;
  if (!id) {
    return;
  }
  event.preventDefault();
  let body = bodyOf(form);
  try {
    body = READ[id] ? READ[id](body) : body;
  } catch (error) {
    complain(form, form.querySelector("textarea"), error.message);
    return;
  }
  const title = form.querySelector("[data-title]").textContent;
  form.closest("dialog").close();
  runAll({ title, items, work: (device) => ACTIONS[id](device, body), label: (device) => device.name });
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) {
    return;
  }
  if ("open" in button.dataset) {
    document.getElementById("one").close();
    open(button.dataset.open, "of" in button.dataset ? [button.dataset.of] : selection.values());
  } else if ("one" in button.dataset) {
    menu(button.dataset.one);
  } else if ("close" in button.dataset) {
    button.closest("dialog").close();
  } else if ("edit" in button.dataset) {
    edit(button.closest("td"));
  }
});

/** The same actions as the bar has, for one device. */
function menu(name) {
  const dialog = document.getElementById("one");
  dialog.querySelector("h2").textContent = name;
  const buttons = [...bar.querySelectorAll("[data-open]")].map((button) => button.cloneNode(true));
  for (const button of buttons) button.dataset.of = name;
  dialog.querySelector(".menu").replaceChildren(...buttons);
  dialog.showModal();
}

document.getElementById("act-image-name").addEventListener("change", (event) => {
  for (const fields of document.querySelectorAll("fieldset[data-image]")) {
    fields.hidden = fields.disabled = fields.dataset.image !== event.target.value;
  }
});

document.getElementById("act-force-state").addEventListener("change", (event) => {
  const hint = document.querySelector("[data-meaning-of=act-force-state]");
  hint.textContent = event.target.selectedOptions[0]?.dataset.meaning || "";
});

/* --- Comments in place: the cell stays as it is while somebody types in it; the row says what is there now --- */

function edit(cell) {
  const row = cell.closest("tr");
  const seen = row.dataset.comments;
  const kept = [...cell.childNodes];
  const form = document.createElement("form");
  form.className = "in-place";
  form.dataset.hold = "";
  form.innerHTML = `
    <textarea rows="2" maxlength="10000"></textarea>
    <div class="buttons">
      <button type="submit" class="small main">Save</button>
      <button type="button" class="small" data-cancel>Cancel</button>
    </div>`;
  const field = form.querySelector("textarea");
  field.id = `${cell.id}-text`;
  field.setAttribute("aria-label", `Comments on ${row.dataset.name}`);
  field.value = seen;
  form.was = seen;
  cell.dataset.keep = "";
  cell.replaceChildren(form);
  field.focus();
  field.setSelectionRange(seen.length, seen.length);

  function end() {
    delete cell.dataset.keep;
    cell.replaceChildren(...kept);
    const text = cell.querySelector(".text");
    text.textContent = row.dataset.comments;
    cell.querySelector("[data-edit]").focus();
  }

  async function save() {
    const comments = field.value.trim();
    const button = form.querySelector("[type=submit]");
    button.disabled = true;
    try {
      await call(path(row.dataset.name, "set-comments"), { body: { comments, was: form.was } });
      row.dataset.comments = comments;
      end();
      tell(`The comments on ${row.dataset.name} are kept.`);
      refresh();
    } catch (error) {
      button.disabled = false;
      if (error.status === 409) {
        await conflict(row, form);
      } else {
        complain(form, field, error.message);
      }
    }
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    save();
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      save();
    } else if (event.key === "Escape") {
      event.preventDefault();
      end();
    }
  });
  form.querySelector("[data-cancel]").addEventListener("click", end);
}

/** What was refused because somebody else wrote: show what is there now. */
async function conflict(row, form) {
  try {
    const now = await call(path(row.dataset.name, "details"), { method: "GET" });
    row.dataset.comments = now.comments || "";
  } catch (error) {
    complain(form, form.querySelector("textarea"), error.message);
    return;
  }
  compare(row, form);
}

/** Say so while somebody types when somebody else has changed the same comments. */
function compare(row, form) {
  const now = row.dataset.comments;
  form.querySelector(".conflict")?.remove();
  if (now === form.was) {
    return;
  }
  const box = document.createElement("div");
  box.className = "conflict";
  box.setAttribute("role", "alert");
  const line = document.createElement("p");
  line.textContent = now ? `Somebody else has changed this meanwhile to: ${now}` : "Somebody else has emptied this meanwhile.";
  const mine = document.createElement("button");
  mine.type = "button";
  mine.className = "small";
  mine.textContent = "Replace it by mine";
  mine.addEventListener("click", () => {
    form.was = now;
    box.remove();
    form.requestSubmit();
  });
  const theirs = document.createElement("button");
  theirs.type = "button";
  theirs.className = "small";
  theirs.textContent = "Take theirs";
  theirs.addEventListener("click", () => {
    form.was = now;
    form.querySelector("textarea").value = now;
    box.remove();
    form.querySelector("textarea").focus();
  });
  const buttons = document.createElement("div");
  buttons.className = "buttons";
  buttons.append(mine, theirs);
  box.append(line, buttons);
  form.prepend(box);
}

onUpdate(() => {
  for (const form of list.querySelectorAll("form.in-place")) {
    const row = form.closest("tr");
    const shown = form.querySelector(".conflict p")?.textContent ?? "";
    if (row.dataset.comments !== form.was && !shown.endsWith(row.dataset.comments || "meanwhile.")) {
      compare(row, form);
    }
  }
});
