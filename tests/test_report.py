"""The report: what is written into the page, and the page in a real browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from scenes import straight_road
from worldloop.renderers.report import film_data, write_report
from worldloop.worldmodel.world import ConstantVelocityWorld

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NASTY = "</script><script>document.title = 'owned'</script><!--<script> "


def film() -> dict[str, Any]:
    world = ConstantVelocityWorld()
    states = [world.reset(straight_road(), torch.zeros(1, dtype=torch.int64))]
    for _ in range(20):
        states.append(world.step(states[-1], None))
    return {"title": "idm in learned: hand/0", **film_data(states, "at_fault_collision")}


def row(number: int, policy: str, score: float, error: str | None = None) -> dict[str, Any]:
    fixed = {"scene": f"hand/{number}", "policy": policy, "world": "learned", "seed": number, "progress": 10.0 * number}
    more = {"seconds": 8.0, "fault": 0, "error": error, "trace": error}
    key, ended = f"learned|{policy}|{number}|hand/{number}", "horizon" if error is None else "policy_failed"
    return {**fixed, "key": key, "score": score, "epdms": score, "ended": ended, **more}


def leader(policy: str, score: float) -> dict[str, Any]:
    names = ("nuplan", "epdms", "at_fault_collision", "off_road", "red_light", "progress", "time_to_collision", "comfort")
    ends = {f"nuplan{end}": score for end in ("_low", "_high")}
    return {"world": "learned", "policy": policy, **dict.fromkeys(names, score), **ends, "scenarios": 2, "failed": 0}


@pytest.fixture
def page_file(tmp_path: Path) -> Path:
    pair = {"world": "learned", "policy": "idm", "than": "random", "difference": 0.4, "difference_low": 0.1}
    pair |= {"difference_high": 0.6, "p_value": 0.01, "scenes": 2}
    rows = [row(0, "idm", 0.9), row(1, "idm", 0.4), row(0, "random", 0.2), row(1, "random", 0.0, f"broke: {NASTY}")]
    films = {rows[1]["key"]: film(), rows[0]["key"]: {**film(), "title": "the best"}}
    write_report(tmp_path / "report.html", "4 scenarios", [leader("idm", 0.65), leader("random", 0.1)], [pair], rows, films)
    return tmp_path / "report.html"


def test_the_page_holds_everything_and_asks_no_network(page_file: Path) -> None:
    text = page_file.read_text()
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    assert found is not None
    data = json.loads(found[1])
    assert data["rows"][3]["error"] == f"broke: {NASTY}"
    assert not re.search(r"https?://", text)
    assert "/*DATA*/" not in text


def test_a_film_tells_where_everyone_is() -> None:
    told = film()
    assert len(told["frames"]) == 21
    assert told["frames"][20]["agents"][0][:3] == [0, pytest.approx(20.0, abs=0.01), pytest.approx(0.0)]
    assert told["frames"][0]["speed"] == pytest.approx(10.0)
    assert told["sizes"][0] == [4.5, 1.8, 0]
    assert {line["kind"] for line in told["lines"]} == {0, 4, 5, 6}
    assert told["ended"] == "at_fault_collision"


@pytest.fixture
def page(page_file: Path) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(page_file.as_uri())
        yield page
        assert not complaints
        assert page.title() == "worldloop evaluation"
        browser.close()


def test_tables_sort_and_filter(page: Any) -> None:
    def column(number: int) -> list[str]:
        return page.locator(f"#scenarios tbody tr td:nth-child({number})").all_inner_texts()

    assert column(5) == ["0.90", "0.40", "0.20", "failed"]
    page.click("#scenarios th button:has-text('progress')")
    assert column(9) == ["10.0", "10.0", "0.0", "0.0"]
    page.click("#scenarios th button:has-text('progress')")
    assert column(9) == ["0.0", "0.0", "10.0", "10.0"]
    page.fill("#text", "random")
    assert column(2) == ["random", "random"]
    page.select_option("#which", "failed")
    assert column(1) == ["hand/1"]
    assert page.inner_text("#count") == "1 of 4 scenarios"
    page.click("#leaders th button:has-text('policy')")
    assert page.locator("#leaders tbody tr td:nth-child(2)").all_inner_texts() == ["idm", "random"]
    assert "broke: </script>" in page.inner_text("#errors")


def test_the_player_plays_pauses_steps_and_scrubs(page: Any) -> None:
    picture = "() => document.getElementById('view').toDataURL()"
    assert page.inner_text("#clock") == "0.0 s of 2.0 s"
    first = page.evaluate(picture)
    page.click("#forth")
    assert page.inner_text("#clock") == "0.1 s of 2.0 s"
    assert page.evaluate(picture) != first
    page.click("#back")
    assert page.evaluate(picture) == first
    page.fill("#time", "20")
    assert page.inner_text("#clock") == "2.0 s of 2.0 s"
    page.click("#play")  # from the end it begins anew
    page.wait_for_function("() => (Number(document.getElementById('time').value) + 15) % 20 < 15")  # from 5 on, not the end
    page.click("#play")
    stopped = page.inner_text("#clock")
    page.wait_for_timeout(300)
    assert page.inner_text("#clock") == stopped
    page.locator("#scenarios tbody tr.playable").first.click()
    assert page.inner_text("#playing") == "the best"
    assert page.inner_text("#clock") == "0.0 s of 2.0 s"
