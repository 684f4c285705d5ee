// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// What came of things: a line at the bottom of the page that goes away by itself, or with a button when it is bad news.

const box = document.getElementById("messages");

/** Show `text`; `kind` is "done" or "failed". */
export function tell(text, kind = "done") {
  const line = document.createElement("p");
  line.className = `message ${kind}`;
  line.append(text);
  if (kind === "failed") {
    const close = document.createElement("button");
    close.type = "button";
    close.textContent = "Close";
    close.addEventListener("click", () => line.remove());
    line.append(close);
  } else {
    setTimeout(() => line.remove(), 6000);
  }
  box.append(line);
  while (box.children.length > 4) {
    box.firstElementChild.remove();
  }
}
