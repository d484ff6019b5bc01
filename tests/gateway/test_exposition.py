"""Prometheus' text format, read by Prometheus' own parser."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from holdfast_gateway.exposition import Family, Sample, encode


def test_what_is_said_is_what_the_parser_reads() -> None:
    """Quotes, backslashes and line ends in labels and in the help included; whole numbers have no exponent."""
    odd = 'a"b\\c\nd'
    families = (
        Family("ours_total", "counter", f"what {odd} means", (Sample({"model": odd}, 2**53 - 1),)),
        Family("now", "gauge", "a moment", (Sample({}, 0.25), Sample({"x": "y"}, False))),
        Family("silent", "gauge", "nothing to say", ()),
    )
    read = list(text_string_to_metric_families(encode(families).decode()))
    assert [(one.name, one.type) for one in read] == [("ours", "counter"), ("now", "gauge")]
    assert read[0].documentation == f"what {odd} means"
    assert [(one.name, one.labels, one.value) for one in read[0].samples] == [("ours_total", {"model": odd}, 2**53 - 1)]
    assert [(one.labels, one.value) for one in read[1].samples] == [({}, 0.25), ({"x": "y"}, 0.0)]
