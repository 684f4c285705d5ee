// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// What every page has.

import "./actions.js";
import { onUpdate } from "./live.js";
import "./times.js";

// A part of a page may carry the page's title, which changes with it.
onUpdate(() => {
  const part = document.querySelector("[data-title]");
  if (part) {
    document.title = part.dataset.title;
  }
});

// Who is at this browser: what requests are made for, and what "mine" means. Other pages and the server read the cookie.
const form = document.getElementById("me");
if (form) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const name = form.elements.me.value.trim();
    document.cookie = `mozpool_me=${encodeURIComponent(name)}; path=/; max-age=${name ? 31536000 : 0}; samesite=lax`;
    location.reload();
  });
}

// All scripts of the page have run by then.
document.addEventListener("DOMContentLoaded", () => {
  document.documentElement.dataset.ready = "";
});
