"""The fleet as a picture: by pipeline and region a bar of what is served, and a dot for each device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from holdfast_server.web.releases import Colours, colour, order

# One region draws at most so many dots; a larger fleet is read from the bars and the device list.
DOTS_A_REGION_MAX: Final = 400
# What one picture asks of the device list.
DOTS_MAX: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A part of a bar: `left` and `width` in per cent."""

    version: str
    colour: str
    count: int
    left: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """One device. `marks` are CSS classes; `words` says the same for people who do not see colours."""

    device: str
    marks: str
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    name: str
    devices: int
    online: int
    bar: tuple[Slice, ...]
    dots: tuple[Dot, ...]
    undrawn: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    name: str
    devices: int
    bar: tuple[Slice, ...]
    regions: tuple[Region, ...]


def draw(fleet: Any, devices: Any, colours: Colours) -> list[Pipeline]:
    """Every pipeline, its regions by name."""
    return [
        _pipeline(name, regions, devices["devices"], colours) for name, regions in sorted(fleet["pipelines"].items())
    ]


def serving_of(pipeline: Any) -> str | None:
    """The version that answers requests on a device, or None."""
    return (pipeline.get("serving") or {}).get("version")


def of_pipeline(device: Any, name: str) -> Any:
    """What a device reported of one pipeline; empty when it reported nothing of it."""
    return next((entry for entry in device.get("pipelines", []) if entry["pipeline"] == name), {})


def _pipeline(name: str, regions: Any, devices: list[Any], colours: Colours) -> Pipeline:
    drawn = tuple(
        _region(region, counts, [device for device in devices if device["region"] == region], name, colours)
        for region, counts in sorted(regions.items())
    )
    served: dict[str, int] = {}
    for counts in regions.values():
        for version, count in counts["serving"].items():
            served[version] = served.get(version, 0) + count
    total = sum(region.devices for region in drawn)
    return Pipeline(name=name, devices=total, bar=_bar(served, total, name, colours), regions=drawn)


def _region(region: str, counts: Any, devices: list[Any], name: str, colours: Colours) -> Region:
    ordered = sorted(devices, key=lambda device: (device.get("labels", {}).get("ring") != "canary", device["device"]))
    dots = tuple(_dot(device, name, colours) for device in ordered[:DOTS_A_REGION_MAX])
    busy = [f"{count} {state}" for state, count in sorted(counts["states"].items()) if state != "idle" and count]
    rare = [f"{counts[word]} {word}" for word in ("single", "degraded") if counts.get(word)]
    if counts.get("shares"):
        rare.insert(0, f"{counts['shares']} with a share of the requests")
    return Region(
        name=region,
        devices=counts["devices"],
        online=counts["online"],
        bar=_bar(counts["serving"], counts["devices"], name, colours),
        dots=dots,
        undrawn=max(0, counts["devices"] - len(dots)),
        notes=(*busy, *rare),
    )


def _bar(served: dict[str, int], total: int, name: str, colours: Colours) -> tuple[Slice, ...]:
    slices, left = [], 0.0
    for version in sorted(served, key=order):
        if not served[version]:
            continue
        width = 100 * served[version] / max(total, 1)
        slices.append(
            Slice(
                version=version,
                colour=colour(colours, name, version),
                count=served[version],
                left=round(left, 3),
                width=round(width, 3),
            )
        )
        left += width
    return tuple(slices)


def _dot(device: Any, name: str, colours: Colours) -> Dot:
    reported = of_pipeline(device, name)
    version, state = serving_of(reported), reported.get("state", "idle")
    words = [device["device"], version or "serves nothing"]
    marks = [colour(colours, name, version)]
    if device.get("labels", {}).get("ring") == "canary":
        marks.append("canary")
        words.append("canary")
    if state != "idle":
        marks.append("busy")
        words.append(f"{state} of {reported['requests']['in_words']}" if reported.get("requests") else state)
    for mark in ("single", "degraded"):
        if reported.get(mark):
            marks.append(mark)
            words.append(mark)
    if reported.get("condemned_here"):
        marks.append("condemned")
        words.append("condemned here: " + ", ".join(str(c["version"]) for c in reported["condemned_here"]))
    if not device.get("online"):
        marks.append("offline")
        words.append("not seen lately")
    return Dot(device=device["device"], marks=" ".join(marks), words=", ".join(words))
