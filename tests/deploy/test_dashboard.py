"""The page in a real Chromium, beside a real run: what a person drags and clicks is what the service then does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.api.backend import finished_backend
from deploy.api.options import ApiOptions
from deploy.api.server import serving
from deploy.runs.config import RunConfig, prototype_distances, save_config, selection_config
from deploy.runs.rundir import RunDir
from loader import ShardIndex
from scoring import Control, RunLog, Selection
from tests.deploy.page_run import SCRIPT, LiveRun, live_run
from tests.programs import needs, program
from tests.runs import wait_for

CHROMIUM = program("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
WAIT_MS = 120_000
SHORT_STEPS, LONG_STEPS = 160, 10_000
LOADED_S = 2.0

pytestmark = [
    pytest.mark.browser,
    needs("chromium"),
]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRun]:
    with live_run(tmp_path_factory.mktemp("page")) as run:
        yield run


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


class Tab:
    """A page of its own, and everything that it asked for or complained about."""

    def __init__(self, context: Any) -> None:
        self.context, self.page = context, context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda line: line.type == "error" and self.complaints.append(line.text))

    def open(self, url: str) -> Any:
        """Open, and wait until the curve is there and its handle can be moved."""
        self.page.goto(url)
        self.page.locator('.handle[aria-disabled="false"]').wait_for()
        return self.page

    def text(self, name: str) -> str:
        return str(self.page.locator(f"#{name}").inner_text())

    def wait(self, name: str, pattern: str) -> str:
        """The text of an element once it matches."""
        self.page.wait_for_function(
            "([name, pattern]) => new RegExp(pattern).test(document.getElementById(name).innerText)",
            arg=[name, pattern],
        )
        return self.text(name)


@pytest.fixture
def tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    contexts: list[Any] = []

    def make(**options: Any) -> Tab:
        contexts.append(browser.new_context(viewport=DESKTOP, **options))
        return Tab(contexts[-1])

    yield make
    for context in contexts:
        context.close()


@pytest.fixture(autouse=True)
def on_schedule(live: LiveRun) -> Iterator[None]:
    """Each test begins and ends with nobody holding anything."""
    yield
    if live.selection.state()["manual"]:
        live.selection.control(Control(kind="release", author="test"))


def height_of(page: Any, value: float) -> float:
    """Where a size stands in the curve, from the grid's labels."""
    return float(
        page.evaluate(
            """value => {
              const labels = [...document.querySelectorAll("#curve-plot text")];
              const place = text => labels.find(label => label.textContent === text).getBoundingClientRect();
              const [zero, top] = [place("0.0"), place("0.7")].map(box => box.top + box.height / 2);
              return zero + (top - zero) * value / 0.7;
            }""",
            value,
        )
    )


def drag_to(page: Any, value: float) -> None:
    page.evaluate("document.getElementById('curve').scrollIntoView({block: 'center'})")
    box = page.locator(".handle .knob").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, height_of(page, value), steps=6)
    page.mouse.up()


def test_dragging_the_handle_and_applying_changes_what_the_next_window_draws(
    live: LiveRun, tab: Callable[..., Tab]
) -> None:
    here = tab()
    page = here.open(live.page)
    page.fill("#author", "mira")
    drag_to(page, 0.45)
    shown = float(page.input_value("#steer-number"))
    assert shown == pytest.approx(0.45, abs=0.011)
    assert here.text("steer-label") == "not applied yet"
    assert not live.selection.state()["manual"], "nothing happens before the person applies"
    expected = float(live.selection.state()["temperature"])
    assert float(page.input_value("#steer-temperature")) > expected, "a broader draw is hotter"
    bound = here.text("steer-bound")
    assert re.search(r"window \d+; .* after at most 17 steps, about [\d.]+ (s|min|h)\b", bound), bound
    page.fill("#steer-reason", "looks narrow")
    page.click("#apply")
    said = here.wait("steer-message", r"In force from window")
    window = int(re.search(r"window ([\d,]+)", said)[1].replace(",", ""))  # type: ignore[index]
    wait_for(lambda: live.selection.next_window > window, "the window that the page named")
    assert live.selection.window(window).effective_size == pytest.approx(shown, abs=1e-6)
    assert live.selection.window(window - 1).effective_size != pytest.approx(shown, abs=1e-3)
    assert here.wait("log", "looks narrow").startswith("mira")
    page.click("#release")
    here.wait("steer-label", "on schedule")
    assert not live.selection.state()["manual"]
    assert here.complaints == []


def test_a_temperature_and_a_policy_are_set_as_the_effective_size_is(live: LiveRun, tab: Callable[..., Tab]) -> None:
    here = tab()
    page = here.open(live.page)
    page.fill("#author", "mira")
    page.fill("#steer-temperature", "0.09")
    assert here.text("steer-label") == "not applied yet"
    page.wait_for_function("() => document.querySelector('.line-draft')")
    meant = live.selection.view("forecast", kind="temperature", value=0.09)["effective_size"]
    page.wait_for_function("size => document.getElementById('steer-number').value === size", arg=f"{meant:.3f}")
    page.keyboard.press("Enter")
    here.wait("steer-message", "In force from window")
    assert live.selection.state()["temperature"] == 0.09

    page.select_option("#steer-policy", "hard")
    assert live.selection.state()["policy"] == "prototypical", "nothing happens before the person applies"
    page.click("#discard")
    assert page.input_value("#steer-policy") == "prototypical"
    page.select_option("#steer-policy", "uniform")
    page.wait_for_function("() => document.getElementById('steer-number').value === '1.000'")
    page.click("#apply")
    said = here.wait("steer-message", "In force from window")
    window = int(re.search(r"window ([\d,]+)", said)[1].replace(",", ""))  # type: ignore[index]
    wait_for(lambda: live.selection.next_window > window, "the window that the page named")
    assert live.selection.window(window).policy == "uniform"
    page.wait_for_function("() => document.getElementById('steer-temperature').disabled")
    assert page.locator(".handle").is_hidden(), "uniform draws have no effective size to drag"
    here.wait("log", r"mira\n[^\n]*uniform")
    page.select_option("#steer-policy", "prototypical")
    page.click("#apply")
    page.wait_for_function("() => !document.getElementById('steer-temperature').disabled")
    assert live.selection.state()["policy"] == "prototypical"
    assert here.complaints == []


def test_the_handle_is_a_slider_for_the_keyboard(live: LiveRun, tab: Callable[..., Tab]) -> None:
    here = tab()
    page = here.open(live.page)
    handle = page.get_by_role("slider", name="Effective dataset size")
    handle.focus()
    page.keyboard.press("End")
    assert float(handle.get_attribute("aria-valuenow")) == 0.63
    page.keyboard.press("ArrowDown")
    assert handle.get_attribute("aria-valuetext") == "0.625 of the data, not applied yet"
    page.keyboard.press("Escape")
    assert float(handle.get_attribute("aria-valuenow")) < 0.6
    page.keyboard.press("PageUp")
    page.keyboard.press("Enter")
    here.wait("steer-message", "In force from window")
    assert live.selection.state()["manual"]


def test_of_two_people_the_later_one_sees_the_name_of_the_first(live: LiveRun, tab: Callable[..., Tab]) -> None:
    here = tab()
    page = here.open(live.page)
    page.get_by_role("slider").press("PageUp")
    live.selection.control(Control(kind="effective_size", value=0.31, author="ana"))
    page.click("#apply")
    here.wait("steer-message", r"ana was faster and set effective size to 0\.31")
    assert live.selection.state()["effective_size"] == pytest.approx(0.31, abs=1e-6)
    page.click("#apply")
    here.wait("steer-message", "In force from window")


def test_plus_and_minus_change_the_fleet(live: LiveRun, tab: Callable[..., Tab]) -> None:
    here = tab()
    page = here.open(live.page)
    page.fill("#author", "mira")
    page.click("#more")
    wait_for(lambda: len(live.fleet.members()) == 3, "a third loader")
    page.locator("#loaders .tile").nth(2).wait_for()
    assert (live.fleet.status()["size"], live.fleet.status()["author"]) == (3, "mira")
    here.wait("fleet-reason", r"3 of 3 ready\. mira")
    page.click("#fewer")
    wait_for(lambda: len(live.fleet.members()) == 2, "two loaders")
    page.wait_for_function("() => document.querySelectorAll('#loaders .tile').length === 2")


def test_a_wrong_token_asks_for_the_right_one_and_leaves_no_trace_in_the_address(
    live: LiveRun, tab: Callable[..., Tab]
) -> None:
    here = tab()
    here.page.goto(f"{live.url}/#token=wrong-wrong-wrong-wrong")
    here.page.locator("#token-dialog[open]").wait_for()
    assert "refused" in here.text("token-message")
    assert here.text("run-name") == "Connecting", "nothing of the run is shown without the token"
    here.page.fill("#token", live.token)
    here.page.keyboard.press("Enter")
    here.wait("run-name", "^page$")
    assert here.page.url == f"{live.url}/"
    assert not any(live.token in url for url in here.asked)


def test_markup_in_keys_labels_and_reasons_is_shown_and_not_run(live: LiveRun, tab: Callable[..., Tab]) -> None:
    live.selection.control(
        Control(kind="effective_size", value=0.4, author="<b>x</b>", reason="<script>hacked()</script>")
    )
    here = tab()
    here.page.add_init_script("window.ran = 0; window.hacked = () => { window.ran += 1; }")
    page = here.open(live.page)
    here.wait("bad", "img src=x")
    here.wait("log", "<script>hacked")
    page.locator("#samples .thumb").first.click()
    assert page.locator("#sample-title").inner_text().startswith(SCRIPT)
    page.wait_for_function("() => document.getElementById('sample-image').naturalWidth > 0")
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("main script, main b").count() == 0
    assert page.evaluate("window.ran") == 0


def test_the_page_asks_only_its_own_server_and_breaks_no_rule_of_it(live: LiveRun, tab: Callable[..., Tab]) -> None:
    here = tab()
    page = here.open(live.page)
    for name in ("Likely now", "Drawn most", "Highest score"):
        page.get_by_role("button", name=name).click()
        page.wait_for_function("() => document.querySelector('#samples img')?.naturalWidth > 0")
    assert {url for url in here.asked if not url.startswith((live.url, "blob:" + live.url))} == set()
    assert here.complaints == []
    policy = page.request.get(live.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy


def test_a_run_that_falls_silent_is_shown_as_stale_until_it_is_heard_again(
    live: LiveRun, tab: Callable[..., Tab], tmp_path: Path
) -> None:
    options, token = ApiOptions(token="a token of the test".replace(" ", "-")), tmp_path / "token"
    here = tab()
    with serving(live.config, live.run, live.backend, options=options, token_path=token) as url:
        page = here.open(f"{url}/#token={options.token}")
    here.wait("stale", r"No answer for \d")
    assert here.text("link-text") == "stale"
    assert page.locator("#more").is_disabled()
    assert page.locator("#steer-number").is_disabled()
    again = replace(options, port=int(url.rpartition(":")[2]))
    with serving(live.config, live.run, live.backend, options=again, token_path=token):
        here.wait("link-text", "live")
        assert page.locator("#stale").is_hidden()


def test_pause_rests_the_trainers_and_resume_lets_them_go_on(live: LiveRun, tab: Callable[..., Tab]) -> None:
    here = tab()
    page = here.open(live.page)
    page.click("#pause")
    here.wait("link-text", "paused")
    assert live.run.pause_request.exists()
    here.wait("pause", "Resume")
    page.click("#pause")
    here.wait("link-text", "live")
    assert not live.run.pause_request.exists()


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_phone_shows_it_all_without_scrolling_sideways(live: LiveRun, browser: Any, scheme: str) -> None:
    context = browser.new_context(viewport=PHONE, has_touch=True, color_scheme=scheme)
    here = Tab(context)
    page = here.open(live.page)
    here.wait("bad", "img src=x")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    small = page.evaluate(
        "[...document.querySelectorAll('main button')].filter(b => b.offsetHeight && b.offsetHeight < 40).length"
    )
    assert small == 0, "a finger needs 40 pixels"
    context.close()


def test_a_run_of_ten_thousand_steps_is_there_in_two_seconds(
    live: LiveRun, tmp_path: Path, tab: Callable[..., Tab]
) -> None:
    """Where even a short run is not, for the machine is slow or busy: in no more than twice its time."""
    with ExitStack() as stack:
        urls = [
            stack.enter_context(served_history(live.config, tmp_path / f"{n}", n)) for n in (SHORT_STEPS, LONG_STEPS)
        ]
        seconds: list[list[float]] = [[], []]
        for _ in range(4):
            for url, steps, taken in zip(urls, (SHORT_STEPS, LONG_STEPS), seconds, strict=True):
                here = tab()
                taken.append(seconds_until_shown(here, url))
                assert f"{steps:,}" in here.text("facts")
                assert here.page.locator("#apply").is_disabled()
                assert here.complaints == []
            short_s, long_s = (min(taken) for taken in seconds)
            if long_s < LOADED_S:
                break
    assert long_s < max(LOADED_S, 2 * short_s), seconds


def seconds_until_shown(here: Tab, url: str) -> float:
    """From asking for the page of a run that is over until its curve, its figures and its samples are there."""
    here.page.goto(url)
    here.page.wait_for_function(
        """() => document.querySelector(".curve-past") && document.querySelector(".spark path[d]")
          && document.querySelector(".line-drawn") && document.getElementById("link-text").innerText == "over"
          && performance.now()"""
    )
    return float(here.page.evaluate("performance.now()")) / 1000


@contextmanager
def served_history(like: RunConfig, folder: Path, steps: int) -> Iterator[str]:
    """The page of a run that did so many steps and is over."""
    config = replace(like, train=replace(like.train, total_steps=steps, window_steps=16))
    run, token = RunDir(folder), folder / "token"
    folder.mkdir()
    save_config(config, run.config)
    write_history(config, run)
    with serving(config, run, finished_backend(run), token_path=token) as url:
        yield f"{url}/#token={token.read_text()}"


def write_history(config: RunConfig, run: RunDir) -> None:
    """The files of a run that did all its steps: windows drawn, steps logged."""
    index, window_steps = ShardIndex.load(config.data.index), config.train.window_steps
    total = config.train.total_steps
    part = selection_config(config, num_samples=len(index), fingerprint=index.fingerprint)
    schedule = config.curriculum.schedule_by_progress()
    with closing(RunLog(run.log)) as log:
        selection = Selection(prototype_distances(config), part, runlog=log)
        for window in range(total // window_steps):
            selection.window(window, effective_size=schedule(window * window_steps / total))
    lines = ({"step": step, "time": 0.0, "loss": 1 / step, "images_per_s": 900.0} for step in range(1, total + 1))
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
