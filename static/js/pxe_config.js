// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// Editing a PXE config: what may be wrong with the text and what a device would be given, as one types; and a word when
// somebody else has changed it meanwhile.

import { bodyOf } from "./actions.js";
import { call } from "./call.js";
import { onUpdate } from "./live.js";

const PAUSE = 400;

const form = document.getElementById("pxe-form");
const { contents, based_on: basedOn } = form.elements;
const side = document.getElementById("pxe-side");
const device = document.getElementById("pxe-device");
const written = document.getElementById("pxe-written");
let saved = JSON.stringify(bodyOf(form));
const own = new Set([basedOn?.value]); // revisions that this page has shown or made
let timer = null;
let asked = 0;

function isChanged() {
  return JSON.stringify(bodyOf(form)) !== saved;
}

async function check() {
  const number = ++asked;
  const body = { contents: contents.value, device: device.value.trim() || undefined };
  try {
    const said = await call(side.dataset.check, { body });
    if (number === asked) {
      show(said.doubts, said.text ?? "Name a device to see the text as it is written for it.");
    }
  } catch (error) {
    if (number === asked) {
      written.textContent = error.message;
    }
  }
}

function show(doubts, text) {
  const list = document.getElementById("pxe-doubts");
  const lines = doubts.map((doubt) => `${doubt.charAt(0).toUpperCase()}${doubt.slice(1)}.`);
  if (lines.join("\n") !== [...list.children].map((line) => line.textContent).join("\n")) {
    list.replaceChildren(
      ...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })),
    );
  }
  written.textContent = text;
}

contents.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(check, PAUSE);
});
device.addEventListener("change", check);

form.addEventListener("done", (event) => {
  if (basedOn) {
    basedOn.value = event.detail.details.revision;
    own.add(basedOn.value);
    compare();
  }
  saved = JSON.stringify(bodyOf(form));
});

window.addEventListener("beforeunload", (event) => {
  if (isChanged()) event.preventDefault();
});

/* Somebody else's change is told as soon as the page hears of it. */
function compare() {
  const stored = document.getElementById("stored");
  const changed = document.getElementById("changed");
  if (changed) {
    changed.hidden = own.has(stored.dataset.revision);
  }
}

if (basedOn) {
  onUpdate(compare);
  document.addEventListener("click", (event) => {
    if (event.target.id === "take-theirs") {
      saved = JSON.stringify(bodyOf(form)); // what was typed is given up
      location.reload();
    } else if (event.target.id === "keep-mine") {
      basedOn.value = document.getElementById("stored").dataset.revision;
      own.add(basedOn.value);
      compare();
    }
  });
}
