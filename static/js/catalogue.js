// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// Rows that are edited in a dialog: a button with data-edit opens one and fills its form (templates/catalogue_macros.html).

import { calm, complain } from "./actions.js";
import { call, CallError } from "./call.js";
import { refresh } from "./live.js";
import { tell } from "./messages.js";

function open(button) {
  const dialog = document.getElementById(button.dataset.edit);
  const form = dialog.querySelector("form");
  const { text, ...values } = JSON.parse(button.dataset.values);
  form.reset();
  calm(form);
  form.querySelector("[data-heading]").textContent = button.dataset.heading;
  const line = form.querySelector("[data-text]");
  if (line) line.textContent = text ?? "";
  for (const field of form.elements) {
    if (field.name) fill(field, values[field.name]);
  }
  if (button.dataset.to) {
    form.dataset.call = button.dataset.to;
    form.dataset.done = button.dataset.said;
  }
  dialog.showModal();
}

function fill(field, value) {
  if (field.type === "checkbox") {
    field.checked = value === true;
    return;
  }
  const text = Array.isArray(value) ? value.join("\n") : (value ?? "");
  if (field.localName === "select" && ![...field.options].some((option) => option.value === text)) {
    field.add(new Option(text, text)); // what is no longer there to choose may stay
  }
  field.value = text;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-edit]");
  if (button) {
    open(button);
  }
});

/* What boots an image on a hardware type: another PXE config, or none. */
document.getElementById("boot-form")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const { pxe_config: chosen, ...body } = Object.fromEntries(new FormData(form));
  const on = form.querySelector("[data-heading]").textContent;
  const now = body.instead_of;
  if (chosen === now) {
    form.closest("dialog").close();
    return;
  }
  try {
    const [name, verb] = chosen ? [chosen, "assign"] : [now, "unassign"];
    await call(`${form.dataset.path}${encodeURIComponent(name)}/${verb}/`, { body });
    tell(chosen ? `${chosen} boots ${on}.` : `Nothing boots ${on} any more.`);
    form.closest("dialog").close();
  } catch (error) {
    if (!(error instanceof CallError)) throw error;
    complain(form, null, error.message);
  }
  await refresh();
});
