// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// The list of requests: several are renewed or returned at a time.

import { complain, seconds } from "./actions.js";
import { agreed } from "./ask.js";
import { runAll, Selection } from "./bulk.js";
import { call } from "./call.js";

const bar = document.getElementById("bulk");
const renewal = document.getElementById("renew");
const selection = new Selection(document.getElementById("requests"), "requests", (selected) => {
  bar.hidden = selected.size === 0;
  bar.querySelector("[data-number]").textContent = `${requests(selected.size)} selected`;
});

function requests(number) {
  return number === 1 ? "1 request" : `${number} requests`;
}

async function forAll(title, work) {
  const failed = await runAll({ title, items: selection.values(), work, label: (id) => `Request ${id}` });
  selection.set(failed);
}

bar.addEventListener("click", async (event) => {
  const what = event.target.dataset.do;
  const many = requests(selection.size);
  if (what === "clear") {
    selection.clear();
  } else if (what === "renew") {
    renewal.querySelector("h2").textContent = `Renew ${many}`;
    renewal.showModal();
  } else if (what === "return" && (await agreed(`Return ${many}? Devices that they have go to others.`, "Return"))) {
    await forAll(`Return of ${many}`, async (id) => {
      await call(`/api/request/${id}/return/`, { body: {} });
      return "returned";
    });
  }
});

renewal.addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  if (event.submitter.value === "no") {
    renewal.close();
    return;
  }
  const duration = seconds(form.elements.duration.value);
  if (!duration) {
    complain(form, form.elements.duration, 'A duration is expected, such as "2 h" or "45 min".');
    return;
  }
  renewal.close();
  await forAll(`Renewal of ${requests(selection.size)}`, async (id) => {
    await call(`/api/request/${id}/renew/`, { body: { duration } });
    return "renewed";
  });
});
