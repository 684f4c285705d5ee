// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// The charts of the overview: what /api/pool/history/ tells, drawn, said in a sentence, and as a table.

import uPlot from "../vendor/uPlot.esm.js";
import { call } from "./call.js";
import { words } from "./times.js";

const PAUSE = 60000;
const HEIGHT = 240;
const MOST_ROWS = 24;
const CATEGORIES = [
  ["in_use", "in use", "--in-use"],
  ["idle", "idle", "--idle"],
  ["processing", "processing", "--processing"],
  ["failed", "failed", "--failed"],
  ["out_of_service", "out of service", "--out"],
];

const section = document.getElementById("charts");
const none = document.getElementById("charts-none");
const drawn = [];
let history = null;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

const two = (number) => String(number).padStart(2, "0");
const clock = (date) => `${two(date.getUTCHours())}:${two(date.getUTCMinutes())}`;
const day = (date) => `${date.getUTCDate()} ${date.toLocaleString("en", { month: "short", timeZone: "UTC" })}`;

/** A moment in seconds, for people; with its day where charts show several. */
function moment(seconds) {
  const date = new Date(seconds * 1000);
  return history.several ? `${day(date)} ${clock(date)}` : clock(date);
}

const whole = (number) => (number === null || number === undefined ? "–" : String(Math.round(number)));

/** A duration; those below ten minutes to the second. */
function lasting(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const s = Math.round(seconds);
  return s > 60 && s < 600 && s % 60 ? `${Math.floor(s / 60)} min ${s % 60} s` : words(s);
}

/** What the server tells, as columns, with a null row wherever there are no samples. */
function columns({ step, samples }) {
  const found = { times: [], rows: [], step };
  let last = null;
  for (const sample of samples) {
    const time = Date.parse(`${sample.time}Z`) / 1000;
    if (last !== null && time - last > step * 1.5) {
      found.times.push(last + step);
      found.rows.push(null);
    }
    found.times.push(time);
    found.rows.push(sample);
    last = time;
  }
  found.several = found.times.length > 0 && last - found.times[0] > 36 * 3600;
  return found;
}

const of = (key) => history.rows.map((row) => (row === null ? null : row[key]));
const samples = () => history.rows.filter((row) => row !== null);

/** The row in which `key` is greatest, and when that was; null when it has no value at all. */
function peak(key) {
  let best = null;
  history.rows.forEach((row, at) => {
    if (row !== null && row[key] !== null && (best === null || row[key] > best.value)) {
      best = { value: row[key], time: history.times[at] };
    }
  });
  return best;
}

const CHARTS = {
  "chart-devices": {
    data() {
      // Each category lies on those before it; the highest is painted first, so that all are seen.
      const sums = history.rows.map(() => 0);
      const stacked = CATEGORIES.map(([key]) =>
        history.rows.map((row, at) => (row === null ? null : (sums[at] += row[key]))),
      );
      return stacked.reverse();
    },
    series() {
      return [...CATEGORIES].reverse().map(([key, label, name]) => ({
        label,
        stroke: colour(name),
        fill: colour(name),
        width: 0,
        points: { show: false },
        value: (_, __, ___, at) => (at === null ? "–" : whole(history.rows[at]?.[key])),
      }));
    },
    said() {
      const now = samples().at(-1);
      const parts = CATEGORIES.map(([key, label]) => {
        const all = samples().map((row) => row[key]);
        const [least, most] = [whole(Math.min(...all)), whole(Math.max(...all))];
        return `${whole(now[key])} ${label}${least === most ? "" : ` (${least} to ${most})`}`;
      });
      return `Lately ${parts.join(", ")}.`;
    },
    heads: CATEGORIES.map(([, label]) => label),
    cells: (row) => CATEGORIES.map(([key]) => whole(row[key])),
  },
  "chart-waiting": {
    data: () => [of("waiting")],
    series: () => [
      {
        label: "waiting",
        stroke: colour("--accent"),
        fill: `${colour("--accent")}33`,
        width: 2,
        points: { show: false },
        value: (_, number) => whole(number),
      },
    ],
    said() {
      const most = peak("waiting");
      const now = `Lately ${whole(samples().at(-1).waiting)}`;
      return most.value ? `${now}; the most were ${whole(most.value)}, at ${moment(most.time)}.` : `${now}; nobody had to wait.`;
    },
    heads: ["waiting at most"],
    cells: (row) => [whole(row.waiting)],
  },
  "chart-ready": {
    data: () => [of("ready_worst"), of("ready_median")],
    series: () => [
      {
        label: "worst",
        stroke: colour("--processing"),
        width: 1.5,
        dash: [4, 3],
        spanGaps: true,
        value: (_, seconds) => lasting(seconds),
      },
      {
        label: "median",
        stroke: colour("--accent"),
        width: 2,
        spanGaps: true,
        value: (_, seconds) => lasting(seconds),
      },
    ],
    seconds: true,
    said() {
      const count = samples().reduce((sum, row) => sum + row.ready, 0);
      if (!count) {
        return "No request became ready.";
      }
      const medians = samples().map((row) => row.ready_median).filter((value) => value !== null);
      const worst = peak("ready_worst");
      return (
        `${count} ${count === 1 ? "request" : "requests"} became ready; the median was ${lasting(medians.at(-1))} last, ` +
        `between ${lasting(Math.min(...medians))} and ${lasting(Math.max(...medians))}; ` +
        `the slowest took ${lasting(worst.value)}, at ${moment(worst.time)}.`
      );
    },
    heads: ["became ready", "median", "worst"],
    cells: (row) => [whole(row.ready), lasting(row.ready_median), lasting(row.ready_worst)],
  },
};

function axis(more) {
  return {
    stroke: colour("--soft"),
    font: "12px system-ui, sans-serif",
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { stroke: colour("--line"), width: 1, size: 5 },
    ...more,
  };
}

/** The legend tells what was last, until the pointer is over the chart. */
function tellLast(made) {
  made.setLegend({ idx: history.times.length - 1 }, false);
}

function options(chart, width) {
  const times = (_, splits) =>
    splits.map((second) => {
      const date = new Date(second * 1000);
      return date.getUTCHours() || date.getUTCMinutes() ? clock(date) : day(date);
    });
  const numbers = chart.seconds
    ? { values: (_, splits) => splits.map((value) => words(value)), size: 72, incrs: [1, 5, 10, 30, 60, 300, 600, 1800, 3600, 7200, 21600, 86400] }
    : { size: 48, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] };
  return {
    width,
    height: HEIGHT,
    tzDate: (second) => uPlot.tzDate(new Date(second * 1000), "Etc/UTC"),
    cursor: { drag: { x: false, y: false } },
    hooks: { ready: [tellLast], setCursor: [(made) => made.cursor.idx === null && tellLast(made)] },
    legend: { markers: { width: 0, fill: (_, at) => chart.colours[at - 1] } },
    scales: { y: { range: (_, __, most) => [0, Math.max(1, (most ?? 0) * 1.08)] } },
    axes: [axis({ values: times }), axis(numbers)],
    series: [{ label: "UTC", value: (_, second) => (second === null ? "–" : moment(second)) }, ...chart.made],
  };
}

function draw(figure, chart) {
  const plot = figure.querySelector(".plot");
  plot.replaceChildren();
  chart.made = chart.series();
  chart.colours = chart.made.map((one) => one.stroke);
  const made = new uPlot(options(chart, plot.clientWidth), [history.times, ...chart.data()], plot);
  drawn.push({ made, plot });
}

/** At most 24 rows, the newest first. */
function fill(table, chart) {
  const every = Math.max(1, Math.ceil(history.rows.length / MOST_ROWS));
  const rows = [];
  for (let at = history.rows.length - 1; at >= 0; at -= every) {
    if (history.rows[at] !== null) {
      rows.push(line("td", [moment(history.times[at]), ...chart.cells(history.rows[at])]));
    }
  }
  table.tHead.replaceChildren(line("th", ["From (UTC)", ...chart.heads]));
  table.tBodies[0].replaceChildren(...rows);
}

function line(name, texts) {
  const row = document.createElement("tr");
  texts.forEach((text, at) => {
    const cell = document.createElement(name);
    cell.textContent = text;
    cell.className = at ? "number" : "";
    if (name === "th") {
      cell.scope = "col";
    }
    row.append(cell);
  });
  return row;
}

function show() {
  drawn.splice(0).forEach(({ made }) => made.destroy());
  const isEmpty = !samples().length;
  section.querySelector(".charts").hidden = isEmpty;
  none.hidden = !isEmpty;
  if (isEmpty) {
    none.textContent = "Nothing is known yet: how the pool is doing is noted once a minute.";
    return;
  }
  for (const [id, chart] of Object.entries(CHARTS)) {
    const figure = document.getElementById(id);
    figure.querySelector("[data-said]").textContent = chart.said();
    fill(figure.querySelector("details table"), chart);
    draw(figure, chart);
  }
}

async function look() {
  if (document.hidden) {
    return;
  }
  try {
    history = columns(await call(section.dataset.source, { method: "GET" }));
    show();
  } catch (error) {
    if (history === null) {
      none.textContent = `How the pool was doing can't be told: ${error.message}`;
      none.hidden = false;
      section.querySelector(".charts").hidden = true;
    }
  }
}

new ResizeObserver(() => {
  for (const { made, plot } of drawn) {
    if (plot.clientWidth && plot.clientWidth !== made.width) {
      made.setSize({ width: plot.clientWidth, height: HEIGHT });
    }
  }
}).observe(section);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => history && show());
document.addEventListener("visibilitychange", look);
setInterval(look, PAUSE);
look();
