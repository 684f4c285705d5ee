// This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
// If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

// Draws a state machine: the current state and what is around it, or all of it. dagre says where everything goes.
//
// data-current is the state that is lit, data-been the states before it, in order, where they are known. Arrows tell
// their events when the pointer is on them; those that lead out of the current state are also told in words.

import dagre from "../vendor/dagre.esm.js";
import { onUpdate } from "./live.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 30;
const LETTER = 7.4;
const machines = new Map();

function load(address) {
  if (!machines.has(address)) {
    machines.set(address, fetch(address).then((answer) => answer.json()));
    machines.get(address).catch(() => machines.delete(address));
  }
  return machines.get(address);
}

function element(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    made.setAttribute(key, value);
  }
  parent?.append(made);
  return made;
}

/** The arrows that are drawn. What leads nearly everywhere ("everywhere") is left out unless it matters now. */
function arrows(machine, current, been) {
  const gone = new Set(been.slice(1).map((state, at) => `${been[at]} ${state}`));
  return machine.edges
    .map((edge) => ({ ...edge, gone: gone.has(`${edge.from} ${edge.to}`), next: edge.from === current }))
    .filter((edge) => edge.gone || edge.next || !edge.everywhere);
}

/** The states that are shown: all, or the current one, those next to it, where it has been, and its theme's around it. */
function chosen(machine, edges, current, been, all) {
  const themes = new Map(machine.states.map((state) => [state.name, state.theme]));
  if (all || !themes.has(current) || isSmall(machine)) {
    return new Set(themes.keys());
  }
  const near = new Set([current]);
  for (const name of near) {
    for (const { from, to } of edges) {
      if (themes.get(from) === themes.get(to) && (from === name || to === name)) {
        near.add(from).add(to);
      }
    }
  }
  for (const { from, to } of edges) {
    if (from === current || to === current) {
      near.add(from).add(to);
    }
  }
  return new Set([...near, ...been.filter((name) => themes.has(name))]);
}

function isSmall(machine) {
  return new Set(machine.states.map((state) => state.theme)).size === 1;
}

function laidOut(names, edges) {
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: "LR", nodesep: 14, ranksep: 46, marginx: 6, marginy: 6 });
  for (const name of names) {
    graph.setNode(name, { width: name.length * LETTER + 22, height: HEIGHT });
  }
  for (const edge of edges) {
    if (names.has(edge.from) && names.has(edge.to)) {
      graph.setEdge(edge.from, edge.to, { ...edge });
    }
  }
  dagre.layout(graph);
  return graph;
}

/** What a drawing takes; arrows may go round the states above and below. */
function extent(graph) {
  const { width, height } = graph.graph();
  const heights = graph.edges().flatMap((edge) => graph.edge(edge).points.map((point) => point.y));
  const top = Math.floor(Math.min(0, ...heights.map((y) => y - 6)));
  const bottom = Math.ceil(Math.max(height, ...heights.map((y) => y + 6)));
  return { top, width: Math.ceil(width), height: bottom - top };
}

/** A smooth line: it leads along the points, and through the middle between each two of them. */
function curve(points) {
  const text = ({ x, y }) => `${x.toFixed(1)} ${y.toFixed(1)}`;
  let path = `M${text(points[0])}`;
  for (let at = 1; at < points.length - 1; at += 1) {
    const [here, next] = [points[at], points[at + 1]];
    const isLast = at === points.length - 2;
    path += `Q${text(here)} ${text(isLast ? next : { x: (here.x + next.x) / 2, y: (here.y + next.y) / 2 })}`;
  }
  return points.length > 2 ? path : `${path}L${text(points.at(-1))}`;
}

function arrowhead(defs, kind) {
  const marker = element(
    "marker",
    {
      id: `arrow-${kind}`,
      viewBox: "0 0 8 8",
      refX: 7,
      refY: 4,
      markerWidth: 9,
      markerHeight: 9,
      markerUnits: "userSpaceOnUse",
      orient: "auto",
    },
    defs,
  );
  element("path", { d: "M0 0L8 4L0 8z", class: `head ${kind}` }, marker);
}

function events(edge) {
  return edge.events.map((event) => (event === "entered" ? "at once" : event)).join(", ");
}

/** Where the current state can lead, in words. */
function exits(edges, current) {
  const next = edges.filter((edge) => edge.next).map((edge) => `${edge.to} (${events(edge)})`);
  return next.length ? `From ${current} it goes to: ${next.join("; ")}.` : `By itself, nothing leads out of ${current}.`;
}

function draw(machine, current, been, all) {
  const edges = arrows(machine, current, been);
  const graph = laidOut(chosen(machine, edges, current, been, all), edges);
  const { top, width, height } = extent(graph);
  const next = edges.filter((edge) => edge.next).map((edge) => edge.to);
  const svg = element("svg", {
    width,
    height,
    viewBox: `0 ${top} ${width} ${height}`,
    role: "img",
    "aria-label": `The current state is ${current}${next.length ? `; it can go on to ${next.join(", ")}` : ""}.`,
  });
  const defs = element("defs", {}, svg);
  ["plain", "next", "gone"].forEach((kind) => arrowhead(defs, kind));
  const order = (edge) => Number(edge.gone) + 2 * Number(edge.next);
  for (const edge of graph.edges().map((each) => graph.edge(each)).sort((a, b) => order(a) - order(b))) {
    const kind = edge.next ? "next" : edge.gone ? "gone" : "plain";
    const group = element("g", { class: "arrow" }, svg);
    const d = curve(edge.points);
    element("path", { d, class: `edge ${kind}`, "marker-end": `url(#arrow-${kind})` }, group);
    element("path", { d, class: "touch" }, group);
    element("title", {}, group).textContent = `${edge.from} → ${edge.to}: ${events(edge)}`;
  }
  const meanings = new Map(machine.states.map((state) => [state.name, state.meaning]));
  for (const name of graph.nodes()) {
    const { x, y, width: w, height: h } = graph.node(name);
    const kinds = {
      current: name === current,
      bad: name.startsWith("failed_"),
      next: next.includes(name),
      been: been.includes(name),
    };
    const group = element("g", { class: ["node", ...Object.keys(kinds).filter((kind) => kinds[kind])].join(" ") }, svg);
    element("rect", { x: x - w / 2, y: y - h / 2, width: w, height: h, rx: 6 }, group);
    element("text", { x, y: y + 4.5, "text-anchor": "middle" }, group).textContent = name;
    element("title", {}, group).textContent = `${name}: ${meanings.get(name)}`;
  }
  return [svg, exits(edges, current)];
}

async function show(place) {
  const { diagram: address, current } = place.dataset;
  const been = place.dataset.been.split(" ").filter(Boolean);
  const drawing = place.querySelector(".drawing");
  const all = drawing.dataset.all === "yes";
  const wanted = `${current} ${been} ${all}`;
  if (drawing.dataset.drawn === wanted) {
    return;
  }
  let machine;
  try {
    machine = await load(address);
  } catch {
    return; // the server is away, as the page says; the next update tries again
  }
  drawing.dataset.drawn = wanted;
  const [svg, words] = draw(machine, current, been, all);
  const region = document.createElement("div");
  region.className = "scroll";
  region.tabIndex = 0;
  region.setAttribute("role", "region");
  region.setAttribute("aria-label", "Drawing of the states");
  region.append(svg);
  const line = document.createElement("p");
  line.className = "hint";
  line.textContent = words;
  drawing.replaceChildren(region, line);
  if (!isSmall(machine)) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = all ? "Show what is near" : "Show all states";
    button.addEventListener("click", async () => {
      drawing.dataset.all = all ? "" : "yes";
      await show(place);
      drawing.querySelector("button").focus();
    });
    drawing.append(button);
  }
  const lit = region.querySelector(".current rect");
  if (lit) {
    region.scrollLeft = lit.x.baseVal.value + lit.width.baseVal.value / 2 - region.clientWidth / 2;
  }
}

onUpdate(() => {
  for (const place of document.querySelectorAll("[data-diagram]")) {
    show(place);
  }
});
