"""The page's views: each asks the API's reads, draws a picture of the answers, and renders it.

`blueprint(reads)` is registered by the application. A page is whole without JavaScript; with it, each section whose topic changed
is fetched again (`/fragments/…`) and replaced in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from flask import Blueprint, Response, render_template, request

from holdfast_server.web import devices, fleet, moments, releases, rollouts, taken_back
from holdfast_shared import selector
from holdfast_shared.errors import HoldfastError, Malformed, Missing

DECISIONS_SHOWN: Final = 12
DECISIONS_A_PAGE: Final = 200
DEVICES_A_PAGE: Final = 200
# Nothing from elsewhere, no inline script or style: what a device or a person named can never run here.
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class Reads(Protocol):
    """What the API answers, as the values its JSON is made of. Each may be repeated; raises Missing for what is not there."""

    def status(self) -> Any: ...

    def fleet(self) -> Any: ...

    def devices(self, segment: str, after: str | None, limit: int) -> Any: ...

    def device(self, device: str) -> Any: ...

    def releases(self) -> Any: ...

    def rollouts(self) -> Any: ...

    def rollbacks(self) -> Any: ...

    def decisions(self, after: int | None, limit: int) -> Any: ...


def blueprint(reads: Reads) -> Blueprint:
    """The pages, their fragments and their static files, over `reads`."""
    web = Blueprint("web", __name__, template_folder="templates", static_folder="static", static_url_path="/assets")
    web.add_app_template_filter(moments.iso, "moment")
    web.add_app_template_filter(moments.percent, "percent")
    web.add_app_template_filter(moments.as_json, "as_json")
    pages = _Pages(reads)
    for rule, endpoint, view in (
        ("/", "overview", pages.overview),
        ("/fragments/<topic>", "fragment", pages.fragment),
        ("/devices", "device_list", pages.device_list),
        ("/devices/<device>", "device_page", pages.device),
        ("/fragments/device/<device>", "device_fragment", pages.device_fragment),
        ("/releases", "release_list", pages.release_list),
        ("/decisions", "decision_list", pages.decision_list),
    ):
        web.add_url_rule(rule, endpoint, view)
    web.register_error_handler(HoldfastError, _refused)
    web.after_request(_guarded)
    return web


class _Pages:
    """One method for each address."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._sections: dict[str, Callable[[], dict[str, Any]]] = {
            "rollouts": self._rollouts,
            "fleet": self._fleet,
            "taken-back": self._taken_back,
            "decisions": self._decisions,
        }

    def overview(self) -> str:
        values: dict[str, Any] = {}
        for draw in self._sections.values():
            values |= draw()
        return self._page("overview.html", **values)

    def fragment(self, topic: str) -> str:
        draw = self._sections.get(topic)
        if draw is None:
            raise Missing(
                f"the page has no section {topic[:64]!r}", next_step=f"ask for one of {', '.join(self._sections)}"
            )
        return render_template(f"fragments/{topic}.html", **draw())

    def device_list(self) -> tuple[str, int]:
        asked, after = request.args.get("segment", "*"), request.args.get("after")
        fault = ""
        found: Any = {"devices": [], "next": None}
        try:
            found = self._reads.devices(selector.written(selector.parse(asked)), after, DEVICES_A_PAGE)
        except Malformed as error:
            fault = str(error)
        rows = devices.rows(found["devices"], self._colours())
        page = self._page("devices.html", segment=asked, fault=fault, devices=rows, next=found.get("next"))
        return page, 400 if fault else 200

    def device(self, device: str) -> str:
        return self._page("device.html", device=devices.draw(self._reads.device(device), self._colours()))

    def device_fragment(self, device: str) -> str:
        drawn = devices.draw(self._reads.device(device), self._colours())
        return render_template("fragments/device.html", device=drawn)

    def release_list(self) -> str:
        return self._page("releases.html", pipelines=releases.draw(self._reads.releases()))

    def decision_list(self) -> str:
        found = self._reads.decisions(request.args.get("after", type=int), DECISIONS_A_PAGE)
        return self._page("decisions.html", decisions=found["decisions"], next=found.get("next"))

    def _rollouts(self) -> dict[str, Any]:
        return {"rollouts": rollouts.draw(self._reads.rollouts(), self._colours())}

    def _fleet(self) -> dict[str, Any]:
        shown = self._reads.devices("*", None, fleet.DOTS_MAX)
        return {"pipelines": fleet.draw(self._reads.fleet(), shown, self._colours())}

    def _taken_back(self) -> dict[str, Any]:
        return {"entries": taken_back.draw(self._reads.rollbacks(), self._reads.rollouts())}

    def _decisions(self) -> dict[str, Any]:
        return {"decisions": self._reads.decisions(None, DECISIONS_SHOWN)["decisions"]}

    def _colours(self) -> releases.Colours:
        return releases.colours(self._reads.releases())

    def _page(self, template: str, **values: Any) -> str:
        return render_template(template, status=self._reads.status(), **values)


def _refused(error: HoldfastError) -> tuple[str, int]:
    return render_template("error.html", status=None, error=error), 404 if isinstance(error, Missing) else 400


def _guarded(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store" if response.mimetype == "text/html" else "no-cache"
    return response
