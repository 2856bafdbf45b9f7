"""LLaMA Board in a real Chromium: starts the server as a user does, opens its page, and leaves no process behind.

In:  a folder in which the Board is started (it writes `saves/`, `llamaboard_cache/` and `llamaboard_config/` there).
Out: a `BoardServer` with its address, and a `BoardPage` whose methods are what a user does: choose, fill, press, read.

Nothing here sleeps for a fixed time: everything waits for what a user would wait for, and gives up after `PATIENCE`,
which is long because the machine may be busy. Board pages keep a stream of events open, so they never become idle on
the network. `LCOT_SCREENSHOTS=DIR` keeps the pictures that `picture` takes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page

PATIENCE = 240.0
"""Seconds that a start of the server, of a run or of a slow event may take on a busy machine."""
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SCREENSHOTS = "LCOT_SCREENSHOTS"
_MARK = "LCOT_TEST_BOARD"
"""Set to a random value in the server's environment, which every process that it starts inherits."""


def find_chromium() -> str | None:
    """The path of a Chromium on this machine, or None. `LCOT_CHROMIUM` names another one."""
    if named := os.environ.get("LCOT_CHROMIUM"):
        return named
    return next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)


@contextlib.contextmanager
def open_chromium(executable: str) -> Iterator[Browser]:
    """A headless Chromium. Several pages of it share the process."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Containers run as root, with 64 MB of shared memory: neither the sandbox nor /dev/shm can be used there.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=executable, args=arguments, timeout=PATIENCE * 1000)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """What happened in a page that nobody should notice: collected while it is open."""

    page: Page
    requests: list[str] = field(default_factory=list)
    """Addresses outside the machine that the page asked for; they are never let through."""
    dialogs: list[str] = field(default_factory=list)
    """Messages of alert, confirm and prompt."""
    errors: list[str] = field(default_factory=list)
    """Uncaught errors of scripts."""


@contextlib.contextmanager
def visit(browser: Browser, *, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Visit]:
    """An empty page in a session of its own, whose requests to other machines are refused and noted."""
    scheme: Any = "dark" if dark else "light"
    context: BrowserContext = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    try:
        context.set_default_timeout(PATIENCE * 1000)
        page = context.new_page()
        seen = Visit(page)

        def refuse(route: Any) -> None:
            seen.requests.append(route.request.url)
            route.abort()

        def dismiss(dialog: Any) -> None:
            seen.dialogs.append(dialog.message)
            dialog.dismiss()

        context.route(_is_elsewhere, refuse)
        page.on("dialog", dismiss)
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        yield seen
    finally:
        context.close()


def _is_elsewhere(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class BoardServer:
    """A running `llamafactory-cli webui`."""

    folder: Path
    """Where it was started."""
    url: str
    log: Path
    """Its standard output and error."""
    mark: str

    def processes(self) -> list[psutil.Process]:
        """The server's own and all that it has started, whoever their parent is now."""
        return _processes_marked(self.mark)

    def training_processes(self) -> list[psutil.Process]:
        """Those that train, or wait for those that do."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if "train" in process.cmdline():
                    found.append(process)
        return found


@contextlib.contextmanager
def board_server(folder: Path, **environment: str) -> Iterator[BoardServer]:
    """Starts the Board in `folder` on a free port; on leaving, ends all its processes, runs included.

    Raises RuntimeError with the end of its log where it does not come up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, mark, log = free_port(), uuid.uuid4().hex, folder / "board.log"
    own = {
        _MARK: mark,
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "BROWSER": "true",  # the Board opens a browser by itself: this one does nothing
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    command = [sys.executable, "-m", "llamafactory.cli", "webui"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **own, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        server = BoardServer(folder, f"http://127.0.0.1:{port}/", log, mark)
        wait_until(lambda: process.poll() is not None or _answers(server.url), "the Board's page")
        if process.poll() is not None:
            raise RuntimeError(f"the Board ended with code {process.returncode}:\n{_end_of(log)}")
        yield server
    finally:
        _kill_marked(mark)
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-40:])


def _processes_marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == mark:
                found.append(process)
    return found


def _kill_marked(mark: str) -> None:
    """Kills until nothing is left: a process may start another one while it is being killed."""
    deadline = time.monotonic() + PATIENCE
    while (processes := _processes_marked(mark)) and time.monotonic() < deadline:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=5)
    if processes:
        raise RuntimeError(f"processes of the Board could not be ended: {processes}")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """The first true value of `condition`, asked ten times a second; TimeoutError names `what` was awaited."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.1)
    return value


class BoardPage:
    """The Board's page, and what a user does with it."""

    def __init__(self, seen: Visit, url: str):
        self.seen, self.page = seen, seen.page
        self.page.goto(url, wait_until="domcontentloaded")
        self.page.get_by_role("tab").first.wait_for()
        self.wait_for_events()

    def wait_for_events(self) -> None:
        """Until no component waits for the answer to an event; those that a run streams into do not count."""
        from playwright.sync_api import expect

        waiting = self.page.locator(".wrap.full:not(.hide):not(.generating)")
        expect(waiting).to_have_count(0, timeout=PATIENCE * 1000)

    def component(self, label: str) -> Locator:
        """The visible component of this label, with all that belongs to it."""
        name = re.compile(rf"^\s*{re.escape(label)}\s*$")
        labels = self.page.locator('[data-testid="block-info"], label > span').filter(has_text=name)
        return self.page.locator(".block").filter(has=labels).locator("visible=true").last

    def input(self, label: str) -> Locator:
        """What is typed into or ticked in the component of this label; of a slider, its number."""
        return self.component(label).locator("input:not([type=range]), textarea").first

    def control(self, name: str) -> Locator:
        """The box to type into of a component of ours, by its name."""
        return self.page.locator(f"#lcot_{name}").locator("input:not([type=range]), textarea").first

    def value(self, label: str) -> str:
        return self.input(label).input_value()

    def choose(self, label: str, *values: str) -> None:
        """Picks from a dropdown by typing, as one does in a list of several hundred."""
        for value in values:
            box = self.input(label)
            box.click()
            box.press_sequentially(value) if len(values) > 1 else box.fill(value)
            self.page.get_by_role("option", name=value, exact=True).locator("visible=true").first.click()
        self.input(label).blur()
        self.wait_for_events()

    def fill(self, label: str, value: object) -> None:
        """Replaces a text or a number, and leaves the box, so that its change is sent."""
        box = self.input(label)
        box.fill(str(value))
        box.blur()
        self.wait_for_events()

    def tick(self, label: str, ticked: bool = True) -> None:
        self.input(label).set_checked(ticked)
        self.wait_for_events()

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True).locator("visible=true").first

    def open_accordion(self, name: str) -> None:
        """Opens what is closed; its heading ends in an arrow."""
        heading = self.page.locator("button.label-wrap").filter(has_text=name).locator("visible=true").first
        if "open" not in (heading.get_attribute("class") or "").split():
            heading.click()

    def open_tab(self, name: str) -> None:
        """Chooses a tab, which on a narrow screen may be behind the button with the dots."""
        tab = self.page.get_by_role("tab", name=name, exact=True).locator("visible=true")
        if not tab.count():
            self.page.locator(".overflow-menu button").locator("visible=true").first.click()
            tab = self.page.locator(".overflow-dropdown button").filter(has_text=name)
        tab.first.click()


def horizontal_overflow(page: Page) -> int:
    """Pixels by which the page is wider than its window."""
    return int(page.evaluate("document.scrollingElement.scrollWidth - document.documentElement.clientWidth"))


def layout_faults(page: Page, scope: str = "body") -> list[str]:
    """`layout_faults_now` once what opens and folds has come to rest, at the latest after ten looks."""
    for _ in range(10):
        if not (faults := layout_faults_now(page, scope)):
            return []
        page.wait_for_timeout(300)
    return faults


def layout_faults_now(page: Page, scope: str = "body") -> list[str]:
    """What a reader could not read within the elements of the selector `scope`, in words; [] where all is well.

    A text that lies over another one or over a control, and a text that is cut by a box that does not scroll. Open
    menus, which lie over the page on purpose, are left out.
    """
    return list(page.evaluate(_LAYOUT_FAULTS, scope))


_LAYOUT_FAULTS = """
(scope) => {
  const intersect = (a, b) => ({
    left: Math.max(a.left, b.left), right: Math.min(a.right, b.right),
    top: Math.max(a.top, b.top), bottom: Math.min(a.bottom, b.bottom),
  });
  const isEmpty = (r) => r.right - r.left < 1 || r.bottom - r.top < 1;
  const name = (box) => JSON.stringify(box.text.trim().slice(0, 60));
  const faults = [], boxes = [];

  // The part of a rectangle that the boxes around it let through; and which of them cuts it without a way to scroll.
  const seen = (element, rect, text) => {
    let left = {left: rect.left, right: rect.right, top: rect.top, bottom: rect.bottom};
    for (let box = element; box && box !== document.body; box = box.parentElement) {
      const style = getComputedStyle(box);
      if (style.overflowX === 'visible' && style.overflowY === 'visible') continue;
      const inner = box.getBoundingClientRect(), part = intersect(left, inner);
      // gradio's frame around a component would scroll, but shows nobody that it does.
      const still = ['hidden', 'clip'].includes(style.overflowX) || box.matches('.gradio-container .block');
      const hides = still && left.right - inner.right > 2;
      if (hides && style.textOverflow !== 'ellipsis' && inner.width > 2 && inner.height > 2)
        faults.push(`cut: ${name({text})} ends ${Math.round(left.right - inner.right)} pixels beyond its box`);
      left = part;
      if (isEmpty(left)) return null;
    }
    return left;
  };
  const add = (element, rect, text) => {
    if (rect.width < 1 || rect.height < 1) return;
    const part = seen(element, rect, text);
    if (part) boxes.push({...part, element, text});
  };
  const isShown = (e) => e.checkVisibility({opacityProperty: true, visibilityProperty: true})
    && !e.closest('[role=listbox]:not(input), .toast-wrap, [role=tooltip]');

  for (const root of document.querySelectorAll(scope)) {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const element = node.parentElement;
      if (!node.data.trim() || ['SCRIPT', 'STYLE', 'TITLE', 'TEXTAREA'].includes(element.tagName)) continue;
      if (!isShown(element)) continue;
      const range = document.createRange();
      range.selectNodeContents(node);
      for (const rect of [...range.getClientRects()].slice(0, 40)) add(element, rect, node.data);
    }
    for (const element of root.querySelectorAll('input, textarea, select, img'))
      if (isShown(element))
        add(element, element.getBoundingClientRect(), element.ariaLabel || element.alt || element.tagName);
  }
  boxes.sort((a, b) => a.top - b.top);
  for (let i = 0; i < boxes.length; i++) {
    for (let j = i + 1; j < boxes.length && boxes[j].top < boxes[i].bottom - 3; j++) {
      const [a, b] = [boxes[i], boxes[j]], both = intersect(a, b);
      if (both.right - both.left < 3 || both.bottom - both.top < 3) continue;
      if (a.element === b.element || a.element.contains(b.element) || b.element.contains(a.element)) continue;
      faults.push(`${name(a)} lies over ${name(b)}`);
    }
  }
  return [...new Set(faults)];
}
"""


def picture(page: Page, name: str, *, whole: bool = True, element: Locator | None = None) -> Path | None:
    """Keeps a screenshot as `name`.png where LCOT_SCREENSHOTS names a folder."""
    folder = os.environ.get(SCREENSHOTS)
    if not folder:
        return None
    path = Path(folder) / f"{re.sub(r'[^a-z0-9_-]', '_', name.lower())}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    if element is not None:
        element.screenshot(path=path)
    else:
        page.screenshot(path=path, full_page=whole)
    return path
