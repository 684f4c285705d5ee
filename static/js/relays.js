// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// The two-way test of a power switch: what came of it stands beside its button.

import { call } from "./call.js";
import { refresh } from "./live.js";

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-test]");
  if (!button) {
    return;
  }
  const came = button.parentElement.querySelector(".came");
  const say = (text, kind) => {
    came.textContent = text;
    came.className = `came ${kind}`;
  };
  button.disabled = true;
  say("asking it …", "");
  try {
    const said = await call(button.dataset.test, { method: "GET" });
    say(said.success ? "it answers" : said.reason || "it does not answer", said.success ? "fine" : "wrong");
  } catch (error) {
    say(error.message, "wrong");
  }
  button.disabled = false;
  await refresh();
});
