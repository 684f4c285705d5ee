// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// The form of a team: a limit that is left empty is to be there no more.

const LIMITS = ["max_devices", "max_duration", "environments"];
const form = document.getElementById("team-form");

/* Before the form is read (actions.js). */
document.addEventListener(
  "submit",
  (event) => {
    if (event.target === form) {
      form.elements.without.value = LIMITS.filter((name) => form.elements[name].value.trim() === "").join("\n");
    }
  },
  { capture: true },
);

/* The name stays as it is once there is a team. */
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-edit=team-dialog]");
  if (button) {
    const field = form.elements.name;
    field.closest(".field").hidden = field.value !== "";
  }
});
