# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A run as a picture: the queue, the devices, and how long people waited."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mozpool.simulate.statistics import QUANTILES, Group, Run

COLOURS = {
    "in use": "#3572b0",
    "idle": "#8bc08b",
    "processing": "#f2c14e",
    "failed": "#c0392b",
    "out of service": "#8c8c8c",
}

BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "frameon": False}
"""Where legends are: outside, below the axis' name."""

MOST_POINTS = 1000
"""More than that are not to be told apart."""


def plot(run: Run, name: str, file: Path) -> None:
    """Write the picture of one run of the plan of this name; the file's suffix says in which format.

    Raises OSError when the file can't be written.
    """
    figure = Figure(figsize=(10, 10), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{name}, seed {run.seed}: {run.scenario.devices} devices, {run.end / 3600:g} h", fontsize=14)
    queue, devices, waits = figure.subplots(3, 1)
    _queue(queue, run)
    _devices(devices, run)
    for axes in (queue, devices):
        axes.set_xlim(0, run.end / 3600)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _waits(waits, run)
    figure.savefig(file)


def _thinned(values: Sequence[float], combine: Callable[[Sequence[float]], float]) -> list[float]:
    """Few enough points to draw, each put together from a stretch of neighbours."""
    step = -(-len(values) // MOST_POINTS) or 1
    return [combine(values[start : start + step]) for start in range(0, len(values), step)]


def _hours(run: Run) -> list[float]:
    return [moment / 3600 for moment in _thinned(run.moments, lambda stretch: stretch[0])]


def _queue(axes: Axes, run: Run) -> None:
    axes.fill_between(_hours(run), _thinned(run.waiting, max), step="post", color=COLOURS["in use"], alpha=0.7)
    axes.set_title("Requests in the queue", loc="left")
    axes.set_ylabel("requests")
    axes.set_ylim(0, max([1, *run.waiting]) * 1.1)
    axes.grid(alpha=0.3)


def _devices(axes: Axes, run: Run) -> None:
    def mean(stretch: Sequence[float]) -> float:
        return sum(stretch) / len(stretch)

    axes.stackplot(
        _hours(run),
        *(_thinned(counts, mean) for counts in run.devices.values()),
        labels=list(run.devices),
        colors=[COLOURS[name] for name in run.devices],
    )
    axes.set_title("Devices", loc="left")
    axes.set_ylabel("devices")
    axes.set_xlabel("simulated hours")
    axes.set_ylim(0, run.scenario.devices)
    axes.legend(ncols=len(run.devices), **BELOW)


def _waits(axes: Axes, run: Run) -> None:
    for group in run.groups():
        _steps(axes, group, main=group.name == "all" or len(run.groups()) == 1)
    # The names of quantiles that are close to each other stand at different heights.
    for height, share in zip((0.28, 0.18, 0.08), QUANTILES, strict=True):
        seconds = run.all.quantile(share)
        if seconds is not None:
            axes.plot([seconds, seconds], [0, share], linestyle="--", color="black", linewidth=1)
            axes.plot([seconds], [share], marker="o", color="black", markersize=5)
            right = seconds > axes.get_xlim()[1] / 2
            axes.annotate(
                f"p{share * 100:.0f}: {seconds:.0f} s",
                (seconds, height),
                xytext=(-5 if right else 5, 0),
                textcoords="offset points",
                horizontalalignment="right" if right else "left",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
    axes.set_title("From the request to its device, of those that got one", loc="left")
    axes.set_ylabel("share that has its device")
    axes.set_xlabel("seconds")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.05)
    axes.grid(alpha=0.3)
    axes.legend(ncols=4, **BELOW)


def _steps(axes: Axes, group: Group, *, main: bool) -> None:
    times = group.times
    axes.step(
        [0.0, *times],
        [place / max(1, len(times)) for place in range(len(times) + 1)],
        where="post",
        label=group.name,
        color="black" if main else None,
        linewidth=2 if main else 1.2,
    )
