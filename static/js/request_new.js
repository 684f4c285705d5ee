// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// The form of a new request: how many devices match, the image's fields, and an end instead of a duration.

import { seconds } from "./actions.js";
import { call } from "./call.js";
import { now } from "./times.js";

const PAUSE = 250;
const form = document.getElementById("new");
const matching = document.getElementById("matching");
const fields = form.elements;
let timer = null;
let asked = 0;

function criteria() {
  const query = new URLSearchParams();
  for (const name of ["device", "environment", "hardware_type", "hardware_model", "image"]) {
    if (fields[name].value.trim()) {
      query.set(name, fields[name].value.trim());
    }
  }
  for (const line of fields.labels.value.split("\n")) {
    if (line.trim().indexOf("=") > 0) {
      query.append("label", line.trim());
    }
  }
  return query;
}

/** What is told of what the API found: a line, why it would have to wait, and how good that is. */
function found({ matching: all, free, reason }) {
  if (all === 0) return ["No device matches", reason, "none"];
  if (all === 1) return [`1 device matches, and it is ${free ? "free now" : "not free now"}`, reason, free ? "free" : "waits"];
  const some = { 0: "none of them is", [all]: "all of them are" }[free] ?? `${free} of them ${free === 1 ? "is" : "are"}`;
  return [`${all} devices match, ${some} free now`, reason?.replace(/^\d+ matching devices: /, ""), free ? "free" : "waits"];
}

async function preview() {
  const number = ++asked;
  let told;
  try {
    told = found(await call(`/api/request/match/?${criteria()}`, { method: "GET" }));
  } catch (error) {
    told = [error.message.replace(/\.$/, ""), "", "none"];
  }
  if (number !== asked) {
    return;
  }
  const [line, reason, kind] = told;
  const text = `${line}.${reason ? ` ${reason}.` : ""}`;
  if (matching.textContent !== text) {
    const strong = document.createElement("strong");
    strong.textContent = `${line}.`;
    matching.replaceChildren(strong, text.slice(strong.textContent.length));
    matching.className = `matching ${kind}`;
  }
}

function showKeys() {
  for (const group of form.querySelectorAll("[data-image]")) {
    group.hidden = group.dataset.image !== fields.image.value;
    for (const field of group.querySelectorAll("[data-required]")) {
      field.required = !group.hidden;
    }
  }
}

/** Unless something is given, a request for one device does not queue, and one for any of them does. */
function showWait() {
  fields.wait.placeholder = fields.device.value.trim() ? "not at all" : fields.wait.dataset.usual;
}

async function offerNames() {
  const { devices } = await call("/api/device/list/", { method: "GET" }).catch(() => ({ devices: [] }));
  document.getElementById("device-names").replaceChildren(...devices.map((name) => new Option("", name)));
}

form.addEventListener("input", (event) => {
  if (event.target.id === "until") {
    const left = Date.parse(`${event.target.value}Z`) - now();
    if (left > 0) {
      fields.duration.value = `${Math.max(1, Math.round(left / 60000))} min`;
    }
    event.target.setCustomValidity(left > 0 || !event.target.value ? "" : "This is over already.");
  } else if (event.target.id === "duration") {
    document.getElementById("until").value = "";
    fields.duration.setCustomValidity(seconds(fields.duration.value) ? "" : 'Such as "2 h" or "45 min".');
  }
  showWait();
  clearTimeout(timer);
  timer = setTimeout(preview, PAUSE);
});
fields.image.addEventListener("change", showKeys);
fields.device.addEventListener("focus", offerNames, { once: true });
setInterval(() => document.hidden || preview(), 5000);
showKeys();
showWait();
preview();
