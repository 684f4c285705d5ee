// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// Times relative to now, which the page itself keeps up to date. Servers write <time datetime="...Z"> with
//   data-ago   "3 min ago", or how long something has lasted ("3 min") with data-ago="lasts"
//   data-left  what is left until then: "1:59:07", "over"

import { onUpdate } from "./live.js";

const offset = skew();

/** Milliseconds by which this machine's clock is ahead of the server's. */
function skew() {
  const now = Date.parse(document.documentElement.dataset.now || "");
  const off = Number.isNaN(now) ? 0 : Date.now() - now;
  return Math.abs(off) < 3000 ? 0 : off;
}

/** Now, by the server's clock, in milliseconds. */
export function now() {
  return Date.now() - offset;
}

/** A duration in seconds, for people: "45 s", "12 min", "3 h 5 min", "2 d 4 h". */
export function words(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  const minutes = Math.floor(s / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  const days = Math.floor(hours / 24);
  return hours % 24 ? `${days} d ${hours % 24} h` : `${days} d`;
}

function countdown(seconds) {
  if (seconds <= 0) return "over";
  if (seconds >= 86400) return words(seconds);
  const s = Math.floor(seconds);
  const two = (n) => String(n).padStart(2, "0");
  return `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}`;
}

function show() {
  const moment = now();
  for (const time of document.querySelectorAll("time[data-ago], time[data-left]")) {
    const away = (Date.parse(time.dateTime) - moment) / 1000;
    const text =
      "left" in time.dataset
        ? countdown(away)
        : time.dataset.ago === "lasts"
          ? words(-away)
          : -away < 1
            ? "just now"
            : `${words(-away)} ago`;
    if (time.textContent !== text) {
      time.textContent = text;
    }
  }
}

onUpdate(show);
setInterval(show, 1000);
