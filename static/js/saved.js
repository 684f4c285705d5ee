// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// Filters that a person gave a name: kept in this browser, shown as links.

/** The current address's filter, without the page that one is on. */
export function filter() {
  const query = new URLSearchParams(location.search);
  query.delete("page");
  return query.toString();
}

function load(key) {
  try {
    const found = JSON.parse(localStorage.getItem(key) || "[]");
    return found.filter((link) => typeof link?.name === "string" && typeof link?.query === "string");
  } catch {
    return [];
  }
}

/** Show the links saved for the page at `list.dataset.saved` in `list`, and have `form` (with a field "name") save the current one. */
export function savedLinks(list, form) {
  const path = list.dataset.saved;
  const key = `mozpool.saved:${path}`;

  function keep(links) {
    localStorage.setItem(key, JSON.stringify(links));
    show();
  }

  function show() {
    const items = load(key).map((link) => {
      const item = document.createElement("li");
      const anchor = document.createElement("a");
      anchor.href = `${path}?${link.query}`;
      anchor.textContent = link.name;
      if (link.query === filter()) {
        anchor.setAttribute("aria-current", "true");
      }
      const remove = document.createElement("button");
      remove.type = "button";
      remove.className = "small quiet";
      remove.textContent = "×";
      remove.setAttribute("aria-label", `Delete the link ${link.name}`);
      remove.addEventListener("click", () => {
        keep(load(key).filter((other) => other.name !== link.name));
        list.closest("nav").querySelector("a, button")?.focus();
      });
      item.append(anchor, remove);
      return item;
    });
    list.replaceChildren(...items);
    list.hidden = !items.length;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const name = form.elements.namedItem("name").value.trim();
    if (name) {
      keep([...load(key).filter((link) => link.name !== name), { name, query: filter() }]);
      form.reset();
      form.closest("dialog").close();
    }
  });
  window.addEventListener("storage", (event) => {
    if (event.key === key) show();
  });
  show();
}
