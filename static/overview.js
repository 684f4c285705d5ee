// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// Keeps the overview up to date: asks every two seconds for what changes of it, and is told 304 when nothing did.

"use strict";

const PAUSE = 2000;
const live = document.getElementById("live");
const away = document.getElementById("away");
let etag = null;

async function refresh() {
  try {
    const answer = await fetch(live.dataset.source, {
      cache: "no-store",
      headers: etag ? { "If-None-Match": etag } : {},
    });
    if (answer.status === 200) {
      etag = answer.headers.get("ETag");
      live.innerHTML = await answer.text();
    }
    away.hidden = answer.ok || answer.status === 304;
  } catch {
    away.hidden = false;
  }
}

async function keepRefreshing() {
  if (!document.hidden) {
    await refresh();
  }
  setTimeout(keepRefreshing, PAUSE);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) {
    refresh();
  }
});
setTimeout(keepRefreshing, PAUSE);
