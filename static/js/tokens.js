// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// A token that was just made: its text is shown once, and kept nowhere.

const made = document.getElementById("made");
const text = document.getElementById("made-text");

document.getElementById("new-token").addEventListener("done", (event) => {
  const { token } = event.detail;
  document.getElementById("made-name").textContent = token.name;
  text.textContent = token.token;
  made.querySelector("[data-copy]").dataset.copy = token.token;
  event.target.reset();
  made.showModal();
});

made.addEventListener("close", () => {
  text.textContent = "";
  made.querySelector("[data-copy]").dataset.copy = "";
});
