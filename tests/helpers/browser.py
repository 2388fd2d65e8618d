"""A real browser without a screen, for tests of pages; skipped where there is none."""

import contextlib
import os
import re
import shutil
from pathlib import Path

import pytest

#: Folder that keeps what the tests see, where it is set.
SCREENSHOTS = "CINESTREAM_SCREENSHOTS"
_TALL = 4000  # px of a screenshot at most


@contextlib.contextmanager
def browser():
    """Chromium, driven by selenium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    program, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not program or not driver:
        pytest.skip("there is no chromium with its chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for one in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "hide-scrollbars",
        "no-first-run",
        "disable-renderer-backgrounding",
        "disable-backgrounding-occluded-windows",
    ):
        options.add_argument(f"--{one}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with contextlib.closing(_Quits(webdriver.Chrome(options, webdriver.ChromeService(driver)))) as found:
        yield Browser(found.driver)


class _Quits:
    def __init__(self, driver):
        self.driver = driver

    def close(self):
        self.driver.quit()


class Browser:
    """What tests do with a page."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, url, width=1200, height=1000, scheme="dark"):
        self.size(width, height)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        self.driver.get(url)

    @contextlib.contextmanager
    def before_pages(self, script):
        """Run a script ahead of those of every page that is opened."""
        added = self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
        yield
        self.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)

    def size(self, width, height=1000):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def ask(self, script):
        """The value of an expression."""
        return self.driver.execute_script(f"return {script}")

    def text(self, selector="body"):
        return self.ask(f"document.querySelector({selector!r}).innerText")

    def click(self, selector):
        self.ask(f"document.querySelector({selector!r}).click()")

    def log(self):
        """What the browser complains of: errors of scripts, what was not found or not allowed."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def keep(self, name, width=1200):
        """Keep a picture of the whole page, where a folder is named for it."""
        folder = os.environ.get(SCREENSHOTS, "")
        if not folder:
            return
        tall = min(_TALL, self.ask("document.documentElement.scrollHeight"))
        self.size(width, tall)
        path = Path(folder) / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(path))
