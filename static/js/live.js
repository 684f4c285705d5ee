// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// Keeps a page up to date: every two seconds it asks for the parts of it that change, and is told 304 when nothing did.
//
// A part is an element with data-live and an id. The server sends all parts of a page in one answer, to the page's own
// address with the header Mozpool-Part (mozpool/web/pages/base.py). Only what differs is changed: what is focused, typed,
// selected, opened or scrolled stays. An element with data-keep stays as it is for as long as it is there,
// and what has one with data-hold in it is not taken away.

import { Idiomorph } from "../vendor/idiomorph.esm.js";

const PAUSE = 2000;
const LIMIT = 10000;
const away = document.getElementById("away");
const signedOff = document.getElementById("signed-off");
const listeners = [];
let etag = document.documentElement.dataset.etag || null;
let running = null;

/** Have `listener` called after each change of the page, and once now. */
export function onUpdate(listener) {
  listeners.push(listener);
  listener();
}

/** Bring the page up to date now; resolves when that is done. */
export function refresh() {
  running ??= ask().finally(() => {
    running = null;
  });
  return running;
}

async function ask() {
  const address = location.href.split("#")[0];
  try {
    const answer = await fetch(address, {
      cache: "no-store",
      redirect: "manual",
      headers: { "Mozpool-Part": "1", ...(etag ? { "If-None-Match": etag } : {}) },
      signal: AbortSignal.timeout(LIMIT),
    });
    if (answer.status === 200 && address === location.href.split("#")[0]) {
      etag = answer.headers.get("ETag");
      update(await answer.text());
    }
    // Whoever is not signed on any more is sent to where they can sign on.
    const isOff = signedOff !== null && answer.type === "opaqueredirect";
    if (signedOff) signedOff.hidden = !isOff;
    away.hidden = answer.ok || answer.status === 304 || isOff;
  } catch {
    away.hidden = false;
  }
}

function update(text) {
  const sent = new DOMParser().parseFromString(text, "text/html");
  for (const part of sent.querySelectorAll("[data-live]")) {
    const shown = document.getElementById(part.id);
    if (shown) {
      Idiomorph.morph(shown, part, {
        ignoreActiveValue: true,
        callbacks: { beforeNodeMorphed, beforeNodeRemoved, beforeAttributeUpdated },
      });
    }
  }
  for (const listener of listeners) {
    listener();
  }
}

function beforeNodeMorphed(node) {
  return !(node.dataset && "keep" in node.dataset);
}

function beforeNodeRemoved(node) {
  if (node.querySelector?.("[data-hold]")) {
    return false;
  }
  return !(node.contains && node.contains(document.activeElement) && node.closest("[data-keep]"));
}

function beforeAttributeUpdated(name, node) {
  return !(name === "open" && (node.localName === "details" || node.localName === "dialog"));
}

async function keepAsking() {
  if (!document.hidden) {
    await refresh();
  }
  setTimeout(keepAsking, PAUSE);
}

if (document.querySelector("[data-live]")) {
  setTimeout(keepAsking, PAUSE);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) {
      refresh();
    }
  });
}
