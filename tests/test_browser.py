r"""Notebooks in a real JupyterLab in a real browser: they run, and a key press on a slider draws another picture.

Skipped where Playwright or Chromium is missing, unless LORA_EDU_REQUIRE_BROWSER=1 asks for a failure instead.
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

NOTEBOOK, TRAINING_NOTEBOOK = "04_nf4_error.ipynb", "08_finetuning.ipynb"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# An outer box comes before its inner ones, so the first match is a whole explorer: its controls and its picture.
EXPLORER = ".jp-OutputArea-output .jupyter-widgets:has(img.widget-image):has(.noUi-handle)"
ERRORS = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"
PIXELS = """image => {
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext('2d');
    context.drawImage(image, 0, 0);
    const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
    let hash = 7;
    for (const value of data) hash = Math.imul(hash ^ value, 16777619);
    return `${canvas.width}x${canvas.height}:${hash >>> 0}`;
}"""


def unavailable(reason: str):
    r"""Skip, or fail where a browser is required."""
    if os.environ.get("LORA_EDU_REQUIRE_BROWSER") == "1":
        pytest.fail(f"LORA_EDU_REQUIRE_BROWSER=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture
def page():
    r"""A page of headless Chromium: the system's, or else the one Playwright installed."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        unavailable("Playwright is not installed")
    with sync_playwright() as playwright:
        system = next(filter(None, map(shutil.which, CHROMIUM)), None)
        executable = system or playwright.chromium.executable_path
        if not Path(executable).is_file():
            unavailable("Chromium is not installed: apt-get install chromium, or python -m playwright install chromium")
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


@pytest.fixture
def lab(tmp_path):
    r"""`lora-edu lab FOLDER` on loopback, with no configuration of the user's: the folder, and a notebook's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    folder = tmp_path / "series"
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTERLAB_SETTINGS_DIR": "settings"}
    own |= {"JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython"}
    environ = {**os.environ, **{name: str(tmp_path / place) for name, place in own.items()}}
    command = [sys.executable, "-m", "lora_edu", "lab", str(folder), "--no-browser", "--", "--ip=127.0.0.1"]
    command += [f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    log = tmp_path / "lab.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(command, env=environ, stdout=stream, stderr=subprocess.STDOUT)
    try:
        wait_for_server(f"http://127.0.0.1:{port}/api/status?token={token}", server, log)
        yield folder, lambda notebook: f"http://127.0.0.1:{port}/lab/tree/{notebook}?token={token}"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_for_server(address: str, server: subprocess.Popen, log: Path):
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"JupyterLab did not answer ({error}); its log:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.1)


def wait_until_idle(page):
    page.get_by_text(re.compile(r"\| Idle$")).wait_for()


def menu(page, name: str, item: str):
    page.locator(".lm-MenuBar-itemLabel", has_text=name).first.click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{item}")).first.click()


def scroll_to_explorer(page):
    r"""Scroll down until the first explorer shows: cells that are off screen are hidden or not in the page at all."""
    pane = page.locator(".jp-WindowedPanel-outer").first
    explorer = page.locator(EXPLORER).first
    deadline = time.monotonic() + 120
    while not explorer.is_visible():
        assert page.locator(ERRORS).count() == 0, page.locator(ERRORS).first.inner_text()
        assert time.monotonic() < deadline, "no output with a slider and a picture appeared"
        moved = pane.evaluate("e => { const top = e.scrollTop; e.scrollTop += 400; return e.scrollTop != top; }")
        if not moved:
            pane.evaluate("e => { e.scrollTop = 0; }")  # the cell may not have run yet: look again
        page.wait_for_timeout(300)
    return explorer


def press_towards_the_wider_side(page, handle):
    r"""One arrow key, away from the end the slider may stand at."""
    now, highest = (float(handle.get_attribute(name)) for name in ("aria-valuenow", "aria-valuemax"))
    handle.focus()
    page.keyboard.press("ArrowLeft" if now >= highest else "ArrowRight")


def open_and_run(page, address: str) -> list[str]:
    r"""Open a notebook and ask for all its cells; returns the list that errors of the page will stand in."""
    page_errors = []
    page.on("pageerror", lambda error: page_errors.append(str(error)))
    page.goto(address)
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    wait_until_idle(page)  # Run All before the kernel is connected is lost
    assert page.get_by_text("official Jupyter news").count() == 0
    menu(page, "Run", "Run All Cells")
    return page_errors


def until(page, condition, seconds: float = 30):
    r"""Wait until `condition()` holds; says whether it came to that."""
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        page.wait_for_timeout(20)
    return met


def test_a_slider_moved_by_keyboard_draws_another_picture(lab, page):
    folder, address = lab
    page_errors = open_and_run(page, address(NOTEBOOK))

    explorer = scroll_to_explorer(page)
    picture = explorer.locator("img.widget-image").first
    handle = explorer.locator(".noUi-handle").first
    handle.scroll_into_view_if_needed()
    before = picture.evaluate(PIXELS)
    press_towards_the_wider_side(page, handle)
    assert until(page, lambda: picture.evaluate(PIXELS) != before)  # the kernel answers in order: every cell has run

    wait_until_idle(page)
    menu(page, "File", "Save Notebook$")
    page.wait_for_function("() => !document.querySelector('.jp-mod-dirty')")
    saved = json.loads((folder / NOTEBOOK).read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in saved if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    assert [o for cell in code for o in cell["outputs"] if o["output_type"] == "error"] == []
    assert page_errors == []


def test_training_behind_a_slider_shows_progress_and_the_last_of_two_presses_wins(lab, page):
    _, address = lab
    page_errors = open_and_run(page, address(TRAINING_NOTEBOOK))
    explorer = scroll_to_explorer(page)
    wait_until_idle(page)
    handle, bar = explorer.locator(".noUi-handle").first, explorer.locator(".progress-bar").first
    picture, line = explorer.locator("img.widget-image").first, explorer.locator(".widget-html-content").last
    before = picture.evaluate(PIXELS), line.inner_text()

    def done():
        return float(bar.evaluate("e => parseFloat(e.style.width)"))

    handle.focus()
    page.keyboard.press("ArrowRight")
    assert until(page, lambda: done() < 100)  # a run is under way,
    page.keyboard.press("ArrowRight")  # and ended by the next
    assert until(page, lambda: done() == 100) and until(page, lambda: picture.evaluate(PIXELS) != before[0])
    twice = picture.evaluate(PIXELS), line.inner_text()
    page.keyboard.press("ArrowLeft")
    assert until(page, lambda: done() < 100) and until(page, lambda: done() == 100)
    page.keyboard.press("ArrowRight")
    assert until(page, lambda: done() < 100) and until(page, lambda: done() == 100)
    assert until(page, lambda: (picture.evaluate(PIXELS), line.inner_text()) == twice)  # the same without hurry
    assert page_errors == []
