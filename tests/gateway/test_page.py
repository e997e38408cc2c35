"""The live page in a real browser: what a person sees and clicks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from gymwire import ProxyEnv, ProxyVectorEnv
from tests.processes import programs

pytest.importorskip("starlette", reason="needs the extra gymwire[web]")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs Chromium", allow_module_level=True)

# Keeps the charts of a page in `window.plots`.
KEEP_PLOTS = """
window.plots = [];
let Plot;
Object.defineProperty(window, "uPlot", {
  get: () => Plot,
  set: (Real) => {
    Plot = function (...options) {
      plots.push(new Real(...options));
      return plots.at(-1);
    };
  },
});
"""


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, str]]:
    """The URLs of a broker and of its page."""
    with programs() as started:
        _, broker = started.broker()
        started.env_agent(broker, "--address", "lab/cart", "--env", "CartPole-v1")
        started.env_agent(broker, "--address", "pendulum", "--env", "Pendulum-v1")
        started.env_agent(broker, "shown/cart", "CartPole-v1", "--watchable")
        started.env_agent(broker, "shown/lake", "FrozenLake-v1", "--watchable")
        gateway = started.start(
            *("gymwire", "web", "--broker", broker, "--listen", "127.0.0.1:0"),
            *("--log-format", "json"),
        )
        yield broker, str(gateway.wait_for("gateway listening")["url"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, served: tuple[str, str]) -> Iterator[Any]:
    """The page, which must load nothing from elsewhere and raise no error."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(20_000)
    wrong: list[str] = []
    allowed = (served[1], "data:")
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda one: wrong.extend([one.text] * (one.type == "error")))
    page.on("request", lambda one: wrong.extend([one.url] * (not one.url.startswith(allowed))))
    page.goto(served[1])
    yield page
    context.close()
    assert not wrong


def test_offers_and_sessions_are_shown(served: tuple[str, str], page: Any) -> None:
    with ProxyEnv("lab/cart", served[0]) as env:
        env.reset(seed=1)
        env.step(0)
        row = page.locator("#sessions tr", has_text="lab/cart")
        row.locator("td", has_text="relayed").wait_for()
        offers = page.locator("#offers tr", has_text="lab/cart").locator("td").all_inner_texts()
        assert offers[:4] == ["lab/cart", "CartPole-v1", "1", "64"]
        row.locator("a").click()
        page.locator("#session-title", has_text="at lab/cart").wait_for()
        assert not page.locator("#overview").is_visible()
    page.locator("#session-title", has_text="has ended").wait_for()
    page.locator("h1 a").click()
    page.locator("#overview").wait_for()
    page.locator("#sessions a").wait_for(state="detached")


def live_page(page: Any, address: str) -> None:
    """Open the page of the only session at this address."""
    page.locator("#sessions tr", has_text=address).locator("a").click()
    page.locator("#session-title", has_text=f"at {address}").wait_for()


def test_a_short_history_is_shown_on_an_axis_of_a_minute(page: Any) -> None:
    page.add_init_script(KEEP_PLOTS)
    page.reload()
    page.wait_for_function("window.plots.some(one => one.data[0].length)")
    shown = page.evaluate(
        "window.plots.filter(one => one.data[0].length).map(({ scales: { x } }) => x.max - x.min)"
    )
    assert shown
    assert all(60 <= seconds < 100 for seconds in shown)


def test_a_session_is_watched_live(served: tuple[str, str], page: Any) -> None:
    with ProxyEnv("shown/cart", served[0]) as env:
        live_page(page, "shown/cart")
        page.locator("#watch-state", has_text="before the first episode").wait_for()
        assert not page.locator("#watch-frame").is_visible()
        env.reset(seed=1)
        picture = page.locator("#watch-frame")
        picture.wait_for()
        # It has the size of the environment's frame once it is decoded.
        page.wait_for_function("document.getElementById('watch-frame').naturalWidth === 600")
        before = picture.get_attribute("src")
        env.step(1)
        page.wait_for_function(
            "src => document.getElementById('watch-frame').src !== src", arg=before
        )
        assert page.locator("#watch-state").inner_text() == ""
    page.locator("#session-title", has_text="has ended").wait_for()
    assert not page.locator("#watch-frame").is_visible()


def test_an_environment_of_a_vector_is_chosen(served: tuple[str, str], page: Any) -> None:
    options = {"vectorization_mode": "sync"}
    with ProxyVectorEnv("shown/cart", 3, served[0], env_kwargs=options) as env:
        env.reset(seed=1)
        live_page(page, "shown/cart")
        page.wait_for_function("document.getElementById('watch-frame').naturalWidth === 600")
        choice = page.get_by_label("Environment")
        assert choice.locator("option").all_inner_texts() == ["0", "1", "2"]
        before = page.locator("#watch-frame").get_attribute("src")
        choice.select_option("2")
        page.wait_for_function(
            "src => document.getElementById('watch-frame').src !== src", arg=before
        )
        assert choice.input_value() == "2"
        assert page.locator("#watch-state").inner_text() == ""


def test_a_session_that_renders_text_is_watched_live(served: tuple[str, str], page: Any) -> None:
    with ProxyEnv("shown/lake", served[0], render_mode="ansi") as env:
        env.reset(seed=1)
        live_page(page, "shown/lake")
        page.locator("#watch-text", has_text="FFFH").wait_for()
        env.step(2)
        page.locator("#watch-text", has_text="(Right)").wait_for()


def test_why_a_session_cannot_be_watched_is_said(served: tuple[str, str], page: Any) -> None:
    with ProxyEnv("lab/cart", served[0]) as env:
        env.reset(seed=1)
        live_page(page, "lab/cart")
        page.locator("#watch-state", has_text="gymwire serve --watchable").wait_for()
        assert not page.locator("#watch-frame").is_visible()


def test_a_discrete_environment_is_played_by_mouse_and_keys(page: Any) -> None:
    page.locator("[data-address='lab/cart']").click()
    page.locator("#play-state", has_text="A new episode").wait_for()
    assert page.locator("#play-actions button").all_inner_texts() == ["0", "1"]
    page.locator("#play-actions button").nth(1).click()
    page.locator("#play-state", has_text="Reward 1, return 1.").wait_for()
    page.keyboard.press("1")
    page.locator("#play-state", has_text="return 2.").wait_for()
    for _ in range(30):
        page.keyboard.press("1")
        if page.locator("#play-state", has_text="terminated").is_visible():
            break
        page.wait_for_function("() => true")
    page.locator("#play-reset").click()
    page.locator("#play-state", has_text="A new episode").wait_for()
    assert page.locator("#play-frame").is_visible()
    page.locator("#play-close").click()
    page.locator("#sessions a").wait_for(state="detached")


def test_a_box_environment_is_played_with_sliders(page: Any) -> None:
    page.locator("[data-address='pendulum']").click()
    page.locator("#play-state", has_text="A new episode").wait_for()
    page.locator("#play-actions input").fill("-2")
    page.locator("#play-actions button", has_text="Step").click()
    page.locator("#play-state", has_text="Reward -").wait_for()


def test_a_broker_that_goes_is_named(browser: Any) -> None:
    with programs() as started:
        broker, at = started.broker()
        gateway = started.start(
            *("gymwire", "web", "--broker", at, "--listen", "127.0.0.1:0", "--log-format", "json")
        )
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.goto(str(gateway.wait_for("gateway listening")["url"]))
        page.locator("#totals b").first.wait_for()
        broker.kill()
        page.locator("#problem", has_text=at).wait_for()
        context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1200, "dark"), (390, "light")])
def test_nothing_is_wider_than_the_window(
    browser: Any, served: tuple[str, str], width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(served[1])
    page.locator("#offers tr").nth(1).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
