"""The page of `explain` in a real browser: Chromium without a window, driven by Selenium.

Needs Debian's packages chromium and chromium-driver, and selenium from PyPI; skipped without them.
"""

import json
import re
import shutil

import pytest

from minidl.study.explain import explain

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
from selenium.webdriver.common.by import By  # noqa: E402 - only if it is there
from selenium.webdriver.common.keys import Keys  # noqa: E402

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver")

LAPTOP = 1366, 768
INTERNAL = "data:", "about:", "chrome:", "chrome-untrusted:"  # addresses of the browser's own pages
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--window-size={LAPTOP[0]},{LAPTOP[1]}",
]
NETWORKS = """
import models.resnet, models.vgg
from minidl import cat
from minidl.functional import relu
from minidl.nn import Conv2d, GlobalAvgPool, Linear, Module

def small_vgg():
    return models.vgg.vgg("A", batch_norm=True, num_classes=10, image_size=32)

def projection():
    return models.resnet.cifar_resnet(8, shortcut="B")

class Dense(Module):
    def __init__(self):
        self.convs = [Conv2d(3, 4, 3, padding=1), *(Conv2d(4 * i, 4, 3, padding=1) for i in range(1, 5))]
        self.fc = Linear(20, 5)

    def forward(self, x):
        features = [self.convs[0](x)]
        for conv in self.convs[1:]:
            features.append(relu(conv(cat(features, 3))))
        return self.fc(GlobalAvgPool()(cat(features, 3)))

def dense():
    return Dense()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the pages."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "networks_to_explain.py").write_text(NETWORKS, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser(folder):
    """Chromium with an empty profile, which writes down its requests and its console."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for option in [*OPTIONS, f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    size = {"width": LAPTOP[0], "height": LAPTOP[1], "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(folder):
    """A function that writes the page of a network, once, and returns its address."""

    def page(network):
        path = folder / f"{network}.html"
        if not path.exists():
            name = network if network.startswith("resnet") else f"{folder}/networks_to_explain.py:{network}"
            path.write_text(explain(name), encoding="utf-8")
        return path.as_uri()

    return page


@pytest.fixture
def opened(browser, pages):
    """A function that opens a page. Afterwards nothing may be in the console, and nothing may have been requested."""
    addresses = []

    def open_page(network, scheme="light"):
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        addresses.append(pages(network))
        browser.get("about:blank")
        browser.get(addresses[-1])
        return browser

    for kind in ("browser", "performance"):
        browser.get_log(kind)
    yield open_page
    assert browser.get_log("browser") == []
    requested = {url for url in requests(browser) if not url.startswith(INTERNAL)}
    assert requested == set(addresses)


def requests(browser):
    """The addresses that the browser requested since the last call."""
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            yield message["params"]["request"]["url"]


def items(browser):
    """The boxes that are visible, in order."""
    return [box for box in browser.find_elements(By.CSS_SELECTOR, "[role=treeitem]") if box.is_displayed()]


def click(browser, selector):
    """Click the first element that matches."""
    browser.find_element(By.CSS_SELECTOR, selector).click()


def panel(browser):
    """The text of the panel."""
    return browser.find_element(By.ID, "panel").text


def press(browser, *keys):
    """Press keys where the focus is."""
    for key in keys:
        browser.switch_to.active_element.send_keys(key)


def selected(browser):
    """The box that is selected."""
    return browser.find_element(By.CSS_SELECTOR, "[role=treeitem][aria-selected=true]")


@pytest.mark.parametrize("network", ["resnet20", "small_vgg", "projection", "dense"])
def test_everything_unfolds_and_every_box_shows_its_panel(opened, network):
    browser = opened(network)
    click(browser, "#unfold")
    boxes = browser.execute_script("return [...boxes.values()].map(({box}) => box)")
    shown = items(browser)
    assert [box.get_attribute("id") for box in shown] == [box["id"] for box in boxes]
    assert browser.find_elements(By.CSS_SELECTOR, "[aria-expanded=false]") == []
    functions = browser.execute_script("return page.functions")
    for element, box in zip(shown, boxes, strict=True):
        # A click in the middle of a group would be one on a box inside.
        browser.execute_script("arguments[0].querySelector('.head').click()", element)
        if box["kind"] == "group":
            browser.execute_script("toggle(arguments[0], true)", box["id"])
        assert selected(browser).get_attribute("id") == box["id"]
        if box["kind"] == "op":
            check_panel(browser, box, functions[box["function"]])
        elif box["kind"] == "fork":
            text = panel(browser)
            assert all(part["norm_text"] in text for part in [*box["paths"], box["total"]])


def check_panel(browser, box, function):
    """The panel of an operation has its name, its formula, its norms and, on each tab, the source of both sides."""
    text = panel(browser)
    assert function["name"] in text and box["grad_norm"] in text and box["value_norm"] in text
    assert "".join(function["formula"].split()) in "".join(text.split())
    figures = browser.execute_script(
        "return [...document.querySelectorAll('.tabs button')].map((tab) => {"
        "  tab.click();"
        "  return [...panel.querySelectorAll('.sides > div')].slice(0, 2).map("
        "    (side) => [...side.querySelectorAll('pre')].map((code) => code.textContent).join(''));"
        "})"
    )
    assert len(figures) == len(function["levels"])
    assert "def forward(" in figures[0][0] and "def backward(" in figures[0][1]
    for level, sides in zip(function["levels"], figures, strict=True):
        for keys, source in zip((level["forward"], level["backward"]), sides, strict=True):
            names = [key.split()[0].rpartition(".")[2] for key in keys]  # 'Conv2d.forward minidl/ops/conv.py:28'
            assert all(f"def {name}(" in source for name in names)


def test_a_block_shows_the_two_gradients_of_its_skip_connection(opened):
    browser = opened("resnet20")
    browser.execute_script("select([...boxes.values()].find(({box}) => box.layer === 'layer1.1.conv1').box.id)")
    fork = selected(browser).find_element(By.XPATH, "preceding-sibling::div[1]")
    lines = fork.text.splitlines()
    assert lines[0] == "x is used twice: ∂L/∂x is a sum" and lines[1::2] == [
        "through conv1",
        "shortcut, unchanged",
        "sum",
    ]
    fork.find_element(By.CSS_SELECTOR, ".head").click()
    assert "This is a skip connection" in panel(browser)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#panel .paths img")) == 3
    widths = [bar.size["width"] for bar in browser.find_elements(By.CSS_SELECTOR, "#panel .paths .bar")]
    norms = [float(text.text) for text in browser.find_elements(By.CSS_SELECTOR, "#panel .paths .gradient")]
    assert widths == pytest.approx([150 * norm / norms[2] for norm in norms], abs=2)


def test_arrows_of_values_go_down_and_those_of_gradients_up(opened):
    browser = opened("resnet20")
    ends = browser.execute_script(
        "return ['forward', 'gradient'].map((kind) => [...document.querySelectorAll(`svg .tip.${kind}`)].map("
        "  (tip) => tip.getAttribute('d').match(/-?[\\d.]+/g).map(Number)))"
    )
    edges = len(items(browser)) - 1
    assert len(ends[0]) == len(ends[1]) == edges
    assert all(y < tip_y for _, tip_y, _, y, _, _ in ends[0]) and all(y > tip_y for _, tip_y, _, y, _, _ in ends[1])


def test_arrows_end_at_their_boxes_also_after_unfolding(opened):
    browser = opened("projection")
    click(browser, "#unfold")
    gaps = browser.execute_async_script(
        "const done = arguments[0];"
        "requestAnimationFrame(() => requestAnimationFrame(() => done(graphs.flatMap(({element, svg, graph}) => {"
        "  const top = element.getBoundingClientRect().top;"
        "  const tips = [...svg.querySelectorAll('.tip.forward')].map((tip) => tip.getAttribute('d').split(' ')[2]);"
        "  const tops = graph.places.map((place) => place.getBoundingClientRect().top - top);"
        "  return graph.edges.map((edge, i) => Number(tips[i]) - tops[edge.ends[1]]);"
        "}))))"
    )
    assert len(gaps) > 30 and max(map(abs, gaps)) < 0.6


def test_the_page_can_be_used_by_keys_alone(opened):
    browser = opened("resnet20")
    press(browser, *[Keys.TAB] * 4)
    first = browser.switch_to.active_element
    assert first.get_attribute("role") == "treeitem" and first == items(browser)[0]
    assert browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle") != "none"
    press(browser, *[Keys.ARROW_DOWN] * 4)
    assert selected(browser).get_attribute("aria-label").startswith("layer1")
    assert "How it calls its parts" in panel(browser)
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert selected(browser).get_attribute("aria-label").startswith("used twice: gradient norms")
    press(browser, Keys.ARROW_DOWN, Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("id") == "panel" and "layer1.0.conv1" in panel(browser)
    press(browser, *[Keys.TAB] * 3, Keys.ARROW_RIGHT)
    assert browser.switch_to.active_element.text == "Plain loops" and "minidl/kernels/reference.py" in panel(browser)
    press(browser, Keys.ESCAPE)
    assert browser.switch_to.active_element == selected(browser)
    press(browser, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert [box.get_attribute("aria-expanded") for box in items(browser)] == [None] * 4 + ["false"] * 3 + [None] * 3
    press(browser, Keys.END)
    assert selected(browser) == items(browser)[-1]
    press(browser, Keys.HOME, Keys.ESCAPE)
    assert "The gradient on its way back" in panel(browser)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_laptop_and_can_be_read(opened, scheme):
    browser = opened("resnet20", scheme)
    click(browser, "#unfold")
    sizes = (
        "return [document.documentElement.scrollWidth, document.documentElement.scrollHeight, innerWidth, innerHeight]"
    )
    width, height, *window = browser.execute_script(sizes)
    assert (width, height) == tuple(window) == LAPTOP
    for name in ("network", "panel"):
        assert (
            browser.execute_script(f"const e = document.getElementById('{name}'); return e.scrollWidth - e.clientWidth")
            <= 0
        )
    colours = [
        browser.execute_script(f"return getComputedStyle(document.body).{name}")
        for name in ("color", "backgroundColor")
    ]
    ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in colours)
    assert ink - paper > 150 if scheme == "dark" else paper - ink > 150


def test_a_folded_network_opens(opened):
    browser = opened("resnet1202")
    click(browser, "#unfold")
    [*_, more] = browser.find_elements(By.CSS_SELECTOR, ".folded > .head")
    assert more.text.startswith("197 more")
    more.click()
    assert "1,379" in panel(browser)


def test_a_link_opens_a_part_of_the_page(browser, opened, pages):
    opened("resnet20").execute_script("location.hash = 'layer2.0'")
    assert "layer2.0" in panel(browser) and selected(browser).get_attribute("aria-expanded") == "true"


def test_the_chart_leads_to_the_operation(opened):
    browser = opened("resnet20")
    hits = browser.find_elements(By.CSS_SELECTOR, "#chart .hit")
    assert len(hits) == 73
    hits[40].click()
    assert "∂L/∂y" in panel(browser) and selected(browser).is_displayed()
