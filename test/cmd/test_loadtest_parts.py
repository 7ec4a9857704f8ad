"""The load tester's parts that need no socket: options, limits, figures, report."""

import random
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest
from yarl import URL

from cmd.loadtest.capacity import check_descriptors, source_addresses
from cmd.loadtest.options import BadOption, Options, duration_s, parse_options
from cmd.loadtest.report import render
from cmd.loadtest.stats import MAX_CAUSES, OTHER_CAUSES, LogHistogram, Tally, Timeline
from cmd.loadtest.summary import as_text, summarize

LOCAL = Options(url=URL("ws://127.0.0.1:8080/ws?model=echo"), connections=10, rounds=1, message="hello")


@pytest.mark.parametrize(
    ("arguments", "url"),
    [
        ("-url ws://h:1/ws", "ws://h:1/ws?model=echo"),
        ("-url ws://h:1", "ws://h:1/ws?model=echo"),
        ("-url ws://h:1/ws -model smollm2", "ws://h:1/ws?model=smollm2"),
        ("-url ws://h:1/ws?model=a&x=1 -model b", "ws://h:1/ws?model=a&x=1"),
        ("-url ws://h:1/ws?token=t", "ws://h:1/ws?token=t&model=echo"),
        ("-url ws://h:1/ws -dialect responses", "ws://h:1/v1/responses"),
        ("-url wss://h -dialect responses -model m", "wss://h/v1/responses"),
        ("-url ws://h/proxy/responses -dialect responses", "ws://h/proxy/responses"),
        ("--url ws://h:1/ws --model=b", "ws://h:1/ws?model=b"),
    ],
)
def test_the_dialect_settles_path_and_model(arguments: str, url: str) -> None:
    assert str(parse_options(arguments.split()).url) == url


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "-url http://h/ws",
        "-url nonsense",
        "-url ws://",
        "-url ws://h -connections 0",
        "-url ws://h -rounds 1.5",
        "-url ws://h -chunks -1",
        "-url ws://h -ramp -1",
        "-url ws://h -ramp nan",
        "-url ws://h -timeout 60",
        "-url ws://h -timeout 0s",
        "-url ws://h -dialect morse",
        "-url ws://h -report /no/such/folder/report.html",
        "-url ws://h -nonsense 5",
        "-url ws://h more",
    ],
)
def test_bad_options_are_told_in_one_line(arguments: str) -> None:
    with pytest.raises(BadOption) as caught:
        parse_options(arguments.split())
    assert "\n" not in str(caught.value)


def test_an_echo_too_large_to_expect_is_refused() -> None:
    with pytest.raises(BadOption, match="64 MiB"):
        parse_options(["-url", "ws://h", "-chunks", "100000", "-message", "x" * 1000])


@pytest.mark.parametrize(
    ("text", "seconds"), [("400ms", 0.4), ("1.5s", 1.5), ("10m", 600), ("1m30s", 90), ("2h", 7200)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1 s", "1s ", "1d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        duration_s(text)


def test_secrets_in_the_url_are_not_shown() -> None:
    test = parse_options(["-url", "ws://me:pass@h/ws?token=secret&model=m"])
    assert test.shown_url == "ws://h/ws?token=***&model=m"
    assert "secret" in str(test.url)


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("127.0.0.9", True), ("[::1]", True), ("10.0.0.1", False), ("example.org", False)],
)
def test_which_hosts_are_this_machine(host: str, local: bool) -> None:
    assert replace(LOCAL, url=URL(f"ws://{host}:80/ws")).is_local is local


def test_too_few_descriptors_are_told() -> None:
    check_descriptors(LOCAL, 1024)
    with pytest.raises(BadOption, match="at most 960"):
        check_descriptors(replace(LOCAL, connections=961), 1024)


def test_more_connections_than_ports_use_several_loopback_addresses() -> None:
    assert source_addresses(LOCAL, 28_000) == (None,)
    many = replace(LOCAL, connections=60_000)
    assert source_addresses(many, 28_000) == ("127.0.0.2", "127.0.0.3", "127.0.0.4")
    assert source_addresses(replace(many, url=URL("ws://localhost/ws")), 28_000) == source_addresses(
        many, 28_000
    )


@pytest.mark.parametrize("url", ["ws://example.org/ws", "ws://[::1]:80/ws"])
def test_more_connections_than_ports_elsewhere_are_refused(url: str) -> None:
    with pytest.raises(BadOption, match="25,200 are usable"):
        source_addresses(replace(LOCAL, connections=60_000, url=URL(url)), 28_000)


def test_percentiles_are_within_half_a_percent() -> None:
    latencies, samples = LogHistogram(), sorted(random.Random(7).lognormvariate(-5, 2) for _ in range(20_000))
    for sample in samples:
        latencies.record(sample)
    for percent in (1, 50, 90, 99, 99.9):
        exact = samples[int(len(samples) * percent / 100) - 1]
        assert latencies.percentile_s(percent) == pytest.approx(exact, rel=0.006)
    assert latencies.percentile_s(100) == latencies.max_s == samples[-1]
    assert sum(count for _, _, count in latencies.bars(60)) == 20_000
    assert len(latencies.bars(60)) <= 60


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-9, 1e9])
def test_any_duration_has_a_bucket(seconds: float) -> None:
    latencies = LogHistogram()
    latencies.record(seconds)
    assert latencies.count == 1
    assert latencies.percentile_s(100) == max(seconds, 0.0)


def test_the_timeline_is_bounded_and_loses_no_frame() -> None:
    timeline = Timeline()
    for second in range(50_000):
        timeline.sample(float(second), second * 10, 1)
    timeline.sample(50_000.0, 500_000, 0, last=True)
    intervals = list(timeline.intervals())
    assert len(intervals) < Timeline.MAX_SAMPLES
    assert sum(i.frames_per_s * (i.end_s - i.start_s) for i in intervals) == pytest.approx(500_000)
    assert (intervals[0].start_s, intervals[-1].end_s) == (0.0, 50_000.0)


@pytest.mark.parametrize("samples", range(Timeline.MAX_SAMPLES - 2, Timeline.MAX_SAMPLES + 2))
def test_the_last_sample_stays(samples: int) -> None:
    timeline = Timeline()
    for second in range(samples):
        timeline.sample(float(second), second, 1)
    timeline.sample(5000.0, 5000, 0, last=True)
    assert list(timeline.intervals())[-1].end_s == 5000.0


def test_causes_are_few_short_and_printable() -> None:
    tally = Tally()
    for number in range(1000):
        tally.failure(f"error: \x1b[2J\n{number} " + "x" * 1000)
    assert len(tally.failures) == MAX_CAUSES + 1
    assert tally.failures[OTHER_CAUSES] == 1000 - MAX_CAUSES
    assert all(cause.isprintable() and len(cause) <= 160 for cause in tally.failures)


class Page(HTMLParser):
    """Collects what a page opens, closes and refers to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.unclosed: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.unclosed.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag


def busy_tally() -> Tally:
    tally, chance = Tally(), random.Random(3)
    for second in range(30):
        tally.timeline.sample(second / 4, second * second * 20, min(second, 10))
    for _ in range(3000):
        tally.first_chunk.record(chance.lognormvariate(-3, 0.5))
        tally.between_chunks.record(chance.lognormvariate(-6, 0.8))
    tally.answered = tally.sent = 10
    return tally


def page_of(test: Options, tally: Tally) -> str:
    return render(test, datetime(2026, 1, 2, tzinfo=UTC), tally, summarize(test, tally, interrupted=False))


def test_the_report_needs_nothing_but_itself() -> None:
    text = page_of(LOCAL, busy_tally())
    page = Page(text)
    assert page.unclosed == []
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not page.attributes & {"src", "href", "srcset", "style", "onload"}
    assert not re.search(r"https?:|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text


def test_the_plots_are_well_formed_and_stay_in_their_frame() -> None:
    plots = re.findall(r"<svg.*?</svg>", page_of(LOCAL, busy_tally()), re.DOTALL)
    assert len(plots) == 5
    for plot in plots:
        root = ET.fromstring(plot)
        for path in root.iter("path"):
            for x, y in re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", path.attrib["d"]):
                assert 0 <= float(x) <= 720
                assert 0 <= float(y) <= 260
    assert sum(len(ET.fromstring(plot).findall("rect")) for plot in plots) > 40


def test_the_report_escapes_everything() -> None:
    evil = "<script>alert(1)</script>\"'&"
    test, tally = (
        replace(LOCAL, message=evil, model=evil, url=URL("ws://h/ws").with_query(model=evil)),
        Tally(),
    )
    tally.failure(f"error: {evil}")
    text = page_of(test, tally)
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;") == 3
    assert Page(text).unclosed == []


def test_a_report_without_any_measurement_says_so() -> None:
    assert page_of(LOCAL, Tally()).count("Nothing was measured.") == 5


def test_a_report_of_one_sample_has_its_plots() -> None:
    tally = Tally()
    tally.first_chunk.record(0.1)
    tally.timeline.sample(0.0, 0, 0)
    tally.timeline.sample(0.01, 5, 1)
    assert page_of(LOCAL, tally).count("<svg") == 4


def test_the_table_names_every_figure() -> None:
    tally = busy_tally()
    tally.failure("closed with 1013")
    table = as_text(LOCAL, summarize(LOCAL, tally, interrupted=False))
    for words in ("connections", "messages", "frames/s", "time to first chunk", "time between chunks", "p99"):
        assert words in table
    assert "1  closed with 1013" in table
    assert "FAILED: 10 of 10 messages answered in full, 1 failure" in table
