// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// The buttons of the page of power switches: each posts to a path of the API. What came of it shows with the next
// refresh (overview.js).

"use strict";

const AGAIN_AFTER = 4000;

live.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-post]");
  if (!button) {
    return;
  }
  const label = button.textContent;
  button.disabled = true;
  try {
    const answer = await fetch(button.dataset.post, { method: "POST" });
    button.textContent = answer.ok ? "Trying…" : "Refused";
  } catch {
    away.hidden = false;
  }
  setTimeout(() => {
    button.disabled = false;
    button.textContent = label;
  }, AGAIN_AFTER);
});
