"""A headless Chromium, driven through the DevTools protocol over a pipe: standard library only, no driver program."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAMS = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--disable-site-isolation-trials",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no network at all: whatever the page needs must be in it
    "--window-size=1500,950", "--remote-debugging-pipe",
)  # fmt: skip


def find_browser() -> str | None:
    """The program named by CHROMIUM, or the first that is installed and starts (Ubuntu has one that only names its snap)."""
    named = os.environ.get("CHROMIUM")
    return next((path for name in ([named] if named else PROGRAMS) if (path := shutil.which(name)) and _starts(path)), None)


def _starts(program: str) -> bool:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


class Browser:
    """One page in a browser with a profile of its own. ``errors`` collects what the page's scripts did wrong.

    Raises:
        RuntimeError: the browser ended, or does not answer within ``timeout`` seconds.
    """

    def __init__(self, program: str, timeout: float = 60) -> None:
        self.timeout = timeout
        self.errors: list[str] = []
        self.contexts: dict[int, dict[str, Any]] = {}  # scripts' worlds by their number: one for each frame
        self._profile = tempfile.mkdtemp(prefix="cmapkd-browser-")
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        # The protocol wants descriptors 3 and 4; bash can move any number there.
        script = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, program, *OPTIONS, f"--user-data-dir={self._profile}", "about:blank"],
            pass_fds=(commands, answers), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        self._buffer, self._number, self._session = b"", 0, ""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        os.close(self._write)
        os.close(self._read)
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, path: Path) -> None:
        """Load a file and wait until its scripts have run."""
        self._ask("Page.navigate", url=path.absolute().as_uri())
        self.wait("document.readyState === 'complete'")

    def run(self, expression: str, frame: str = "") -> Any:
        """The JSON-able value of a JavaScript expression in the page, or in the frame whose address starts with ``frame``."""
        context = {"contextId": self._frame(frame)} if frame else {}
        given = {"expression": expression, "returnByValue": True, "awaitPromise": True, **context}
        answer = self._ask("Runtime.evaluate", **given)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression}: {_described(answer['exceptionDetails'])}")
        return answer["result"].get("value")

    def wait(self, expression: str, frame: str = "") -> Any:
        """The expression's value, once it is true."""
        end = time.monotonic() + self.timeout
        while time.monotonic() < end:
            try:
                if value := self.run(expression, frame):
                    return value
            except (LookupError, ValueError, AssertionError):
                pass  # a frame that is not there yet, or is just being replaced
            time.sleep(0.05)
        raise AssertionError(f"did not become true within {self.timeout:g} s: {expression}; errors: {self.errors}")

    def click(self, text: str, within: str = "nav") -> None:
        """Click the link whose text is ``text``."""
        links = f"[...document.querySelectorAll({json.dumps(within + ' a')})]"
        found = f"{links}.find(link => link.textContent.trim() === {json.dumps(text)})"
        self.wait(f"Boolean({found})")
        self.run(f"{found}.click()")

    def screenshot(self, path: Path) -> None:
        """What a person would see, as PNG."""
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))

    def _frame(self, address: str) -> int:
        """The newest frame whose address starts with ``address``."""
        tree = self._ask("Page.getFrameTree")["frameTree"]
        frames = [child["frame"] for child in tree.get("childFrames", [])]
        wanted = {frame["id"] for frame in frames if frame["url"].startswith(address)}
        found = [n for n, c in self.contexts.items() if c["auxData"]["frameId"] in wanted and c["auxData"]["isDefault"]]
        if not found:
            raise LookupError(f"no frame shows {address}")
        return max(found)

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise ValueError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._notice(answer)

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + self.timeout
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._read, 1 << 20) if ready else b""
            if not data:
                state = "ended" if ready else f"did not answer within {self.timeout:g} s"
                raise RuntimeError(f"the browser {state} (exit code {self._process.poll()})")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def _notice(self, event: dict[str, Any]) -> None:
        given = event.get("params", {})
        match event.get("method"):
            case "Runtime.executionContextCreated":
                self.contexts[given["context"]["id"]] = given["context"]
            case "Runtime.executionContextDestroyed":
                self.contexts.pop(given["executionContextId"], None)
            case "Runtime.executionContextsCleared":
                self.contexts.clear()
            case "Runtime.exceptionThrown":
                self.errors.append(_described(given["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if given["type"] in ("error", "assert"):
                self.errors.append(" ".join(str(argument.get("value", argument)) for argument in given["args"]))
            case "Log.entryAdded" if given["entry"]["level"] == "error":
                self.errors.append(f"{given['entry']['text']} {given['entry'].get('url', '')[:200]}")


def _described(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"])
