"""The metrics of several processes, from one of them."""

import os
import socket
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from internal.biz.errors import SluiceError
from internal.metrics.instruments import Instruments
from internal.server import siblings
from internal.server.siblings import Siblings, merged

FIRST = b"""# HELP sessions Open
# TYPE sessions gauge
sessions 1.0
# HELP answers_total Ended
# TYPE answers_total counter
answers_total{model="a } b",status="x"} 2.0
"""
SECOND = b"""# HELP sessions Open
# TYPE sessions gauge
sessions 3.0
# HELP lag Late
# TYPE lag histogram
lag_bucket{le="+Inf"} 4.0
lag_count 4.0
lag_sum 0.5
"""


def test_a_family_is_described_once_and_has_the_samples_of_all() -> None:
    expected = b"""# HELP sessions Open
# TYPE sessions gauge
sessions{process="0"} 1.0
sessions{process="2"} 3.0
# HELP answers_total Ended
# TYPE answers_total counter
answers_total{process="0",model="a } b",status="x"} 2.0
# HELP lag Late
# TYPE lag histogram
lag_bucket{process="2",le="+Inf"} 4.0
lag_count{process="2"} 4.0
lag_sum{process="2"} 0.5
"""
    assert merged([(0, FIRST), (2, SECOND)]) == expected


def test_what_our_instruments_say_can_be_merged_and_parsed() -> None:
    instruments = Instruments()
    instruments.session_opened()
    instruments.session_closed(1000)
    instruments.response_ended("a\u2028b", "completed", 0.5)
    instruments.token_gap("m", 0.1, 3)
    alone = list(text_string_to_metric_families(instruments.scrape().decode()))
    text = merged((number, instruments.scrape()) for number in range(3)).decode()
    together = list(text_string_to_metric_families(text))
    assert [family.name for family in together] == [family.name for family in alone]
    for one, three in zip(alone, together, strict=True):
        assert (one.type, one.documentation) == (three.type, three.documentation)
        expected = [
            (number, sample.name, sample.labels, sample.value) for number in "012" for sample in one.samples
        ]
        found = []
        for sample in three.samples:
            number = sample.labels.pop("process")
            found.append((number, sample.name, sample.labels, sample.value))
        assert found == expected


async def test_every_process_answers_for_all(tmp_path: Path) -> None:
    first = Siblings(tmp_path, 0, 2, lambda: FIRST)
    second = Siblings(tmp_path, 1, 2, lambda: SECOND)
    async with first, second:
        assert await first.scrape() == await second.scrape() == merged([(0, FIRST), (1, SECOND)])
    assert not os.listdir(tmp_path)


async def test_a_process_that_is_gone_is_left_out(tmp_path: Path) -> None:
    async with Siblings(tmp_path, 1, 3, lambda: SECOND) as process:
        (tmp_path / "2.sock").touch()
        assert await process.scrape() == merged([(1, SECOND)])


async def test_a_process_takes_the_place_of_one_that_was_killed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "1.sock"))
    first = Siblings(tmp_path, 0, 2, lambda: FIRST)
    async with first, Siblings(tmp_path, 1, 2, lambda: SECOND):
        assert b'process="1"' in await first.scrape()


async def test_a_process_that_hangs_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siblings, "PATIENCE_S", 0.05)
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(tmp_path / "1.sock"))
        hanging.listen()
        async with Siblings(tmp_path, 0, 2, lambda: FIRST) as process:
            assert await process.scrape() == merged([(0, FIRST)])


async def test_a_folder_whose_name_is_too_long_is_an_error_that_says_so(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    process = Siblings(folder, 0, 1, lambda: FIRST)
    with pytest.raises(SluiceError, match=r"cannot listen on .*0\.sock"):
        async with process:
            pytest.fail("it listens")
