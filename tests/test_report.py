"""`report`: the page as text, and in a real browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from requirements import needs
from support import MANIFEST, answer, lingconv, refuse, succeed

LAYERS, EXPERTS = 6, 16
EVIL = "</style></title><script>alert(1)</script><img src=http://127.0.0.1/x onerror=alert(1)>"


def recorded() -> Any:
    """Counts of a dense layer and five with experts; one expert is unused, one is hot."""
    generator = np.random.default_rng(1)
    counts = generator.poisson(np.exp(generator.normal(size=(LAYERS, EXPERTS))) * 1000) + 1
    counts[0] = 0
    counts[2, 3] = 0
    counts[4, 9] = 1_234_567
    return counts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP8 output with measured errors, recorded loads, and the page of both."""
    folder = tmp_path_factory.mktemp("report")
    size = ("--layers", str(LAYERS), "--experts", str(EXPERTS))
    succeed("synth", "tiny", "-o", "model", *size, cwd=folder)
    succeed("quantize", "fp8", "model", "--report", cwd=folder)
    (folder / "loads.json").write_text(json.dumps(recorded().tolist()))
    succeed("report", "model-fp8", "--loads", "loads.json", cwd=folder)
    return folder


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def titles(self, tag: str) -> list[str]:
        found = [attributes.get("title") for name, attributes in self.tags if name == tag]
        return [title for title in found if title]


def parsed(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def harmless(page: Page) -> None:
    """No script, no address, and no style but the one that the policy knows."""
    names = {name for name, _ in page.tags}
    assert not names & {"script", "img", "iframe", "link", "object", "embed", "form", "base", "a"}
    for _, attributes in page.tags:
        assert not {"src", "href", "srcset", "style", "onerror", "onload"} & set(attributes)


def test_the_page_fetches_and_runs_nothing(folder: Path) -> None:
    page = parsed(folder / "model-fp8-report.html")
    harmless(page)
    text = (folder / "model-fp8-report.html").read_text()
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'")


def test_what_the_page_says(folder: Path) -> None:
    page = parsed(folder / "model-fp8-report.html")
    text = " ".join(" ".join(page.text).split())
    manifest = json.loads((folder / "model-fp8" / MANIFEST).read_text())
    assert manifest["plan"] in text
    assert manifest["source"]["digest"] in text
    for file in manifest["files"] + manifest["sidecars"]:
        assert file["path"] in text
        assert file["sha256"] in text
    cells = page.titles("i")
    counts = recorded()
    loads = [title for title in cells if ", expert " in title]
    assert loads[: counts[1:].size] == [
        f"layer {layer}, expert {expert}: {counts[layer, expert]:,}"
        for layer in range(1, LAYERS)
        for expert in range(EXPERTS)
    ]
    errors = {}
    for file in manifest["files"]:
        for tensor in file["tensors"]:
            if "error" in tensor and ".mlp.experts." in tensor["name"]:
                words = tensor["name"].split(".")
                key = words[2], words[6].removesuffix("_proj")
                errors.setdefault(key, []).append(tensor["error"]["sqnr_db"])
    assert len(errors) == 3 * (LAYERS - 1)
    for (layer, role), found in errors.items():
        assert f"layer {layer}, expert.{role}: {min(found):.2f} dB" in cells


def test_speed_is_remembered(folder: Path, tmp_path: Path) -> None:
    """Where the run was made, and not for a copy."""
    home = {"XDG_STATE_HOME": str(tmp_path / "state")}
    succeed("quantize", "fp8", folder / "model", "-o", tmp_path / "out", "-j", "2", **home)
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    for name in ("out", "copy"):
        succeed("report", tmp_path / name, **home)
    texts = {name: (tmp_path / f"{name}-report.html").read_text() for name in ("out", "copy")}
    speed = re.search(r"([\d.]+ .B) read and ([\d.]+ .B) written in .* with 2 jobs", texts["out"])
    assert speed
    size = sum(f.stat().st_size for f in (folder / "model").glob("*.safetensors"))
    assert abs(float(speed[1].split()[0]) * 1e6 / size - 1) < 0.02
    assert "not remembered here" in texts["copy"]
    (record,) = (tmp_path / "state" / "lingconv" / "runs").iterdir()
    for damage in (
        "",
        "[]",
        '{"seconds": 0, "read": 1, "written": 1, "jobs": 1}',
        '{"seconds": 1}',
    ):
        record.write_text(damage)
        succeed("report", tmp_path / "out", **home)
        assert "not remembered here" in (tmp_path / "out-report.html").read_text()


def test_bias_pressure_is_that_of_the_weights(folder: Path) -> None:
    page = parsed(folder / "model-fp8-report.html")
    found = json.loads(lingconv("experts", "stats", folder / "model-fp8", "--json").stdout)
    expected = [
        f"layer {layer['layer']}, expert {expert}: {value:+.4g}"
        for layer in found["layers"]
        for expert, value in enumerate(layer["bias"]["pressure"])
    ]
    assert len(expected) == (LAYERS - 1) * EXPERTS
    loads, pressure = np.array_split([t for t in page.titles("i") if ", expert " in t], 2)
    assert list(pressure) == expected
    assert len(loads) == len(expected)


def test_balance_is_that_of_place(folder: Path) -> None:
    text = (folder / "model-fp8-report.html").read_text()
    place = ("experts", "place", "loads.json", "--ep", "8", "--model", "model")
    found = answer(*place, cwd=folder)
    marks = re.findall(r"<title>layer (\d+): .*? ([\d.]+)×, .*? ([\d.]+)×, bound ([\d.]+)×", text)
    assert marks == [
        tuple(
            str(layer["layer"]) if key == "layer" else f"{layer[key]:.3f}"
            for key in ("layer", "before", "after", "bound")
        )
        for layer in found["moe_layers"]
    ]


def test_errors_of_fused_tensors(folder: Path) -> None:
    """Ranks hold experts stacked; each has its own figures all the same, and each once."""
    cut = ("--tp", "2", "--ep", "2", "--format", "fp8", "--report", "-o", "fused")
    ran = answer("reshard", "model", *cut, cwd=folder)
    succeed("report", "fused", cwd=folder)
    page = parsed(folder / "fused-report.html")
    manifest = json.loads((folder / "fused" / MANIFEST).read_text())
    tensors = [t for file in manifest["files"] for t in file["tensors"] if "error" in t]
    named = {t["from"]: t["error"] for t in tensors}
    parts = {part["tensor"]: part["error"] for part in manifest["errors"]}
    assert not set(named) & set(parts)
    measured = {report.pop("tensor"): report for report in ran["reports"]}
    for name, error in (named | parts).items():
        assert error == {key: measured[name][key] for key in error}
    assert set(named | parts) == set(measured)
    least = min(
        v["sqnr_db"]
        for n, v in parts.items()
        if ".layers.3." in n and "up_proj" in n and "shared" not in n
    )
    assert f"layer 3, expert.up: {least:.2f} dB" in page.titles("i")


def test_linked_files_need_no_digest(folder: Path) -> None:
    succeed("reshard", "model", "--target", "hf", "--pp", "2", "-o", "linked", cwd=folder)
    succeed("report", "linked", cwd=folder)
    manifest = json.loads((folder / "linked" / MANIFEST).read_text())
    unknown = [file for file in manifest["files"] if "sha256" not in file]
    assert unknown
    text = "".join(parsed(folder / "linked-report.html").text)
    assert text.count("not known: linked") == len(unknown)


def test_the_order_of_the_files_is_judged(folder: Path) -> None:
    """An output that was cut with a map shows what the map did."""
    succeed(
        *("experts", "place", "loads.json", "--ep", "2", "--model", "model", "-o", "map.json"),
        cwd=folder,
    )
    cut = ("--tp", "2", "--ep", "2", "--experts", "map.json", "-o", "cut")
    succeed("reshard", "model", *cut, cwd=folder)
    succeed("report", "cut", "--loads", "loads.json", cwd=folder)
    text = (folder / "cut-report.html").read_text()
    assert "EP 2, as cut" in text
    assert "in the order of a map" in text
    assert text.count('<circle class="after"') == LAYERS - 1


def test_a_checkpoint_of_others(folder: Path) -> None:
    """Without manifest and loads there is the model alone."""
    succeed("report", "model", "-o", "plain.html", cwd=folder)
    ids = [
        attributes["id"]
        for _, attributes in parsed(folder / "plain.html").tags
        if "id" in attributes
    ]
    assert ids == ["model", "bias"]


def test_names_are_escaped(folder: Path, tmp_path: Path) -> None:
    evil = tmp_path / "<img src=x onerror=alert(1)>"
    shutil.copytree(folder / "model-fp8", evil)
    manifest = json.loads((evil / MANIFEST).read_text())
    manifest |= {"tool": EVIL, "plan": EVIL, "warnings": [EVIL]}
    manifest["request"]["dialect"] = EVIL
    manifest["files"][0]["path"] = EVIL
    manifest["files"][1]["tensors"][2]["from"] = EVIL
    manifest["files"][1]["tensors"][2].setdefault("error", _error())
    (evil / MANIFEST).write_text(json.dumps(manifest))
    succeed("report", evil, "-o", tmp_path / "page.html")
    page = parsed(tmp_path / "page.html")
    harmless(page)
    assert EVIL in "".join(page.text)
    assert any(evil.name in text for text in page.text)


def _error() -> dict[str, Any]:
    return {"sqnr_db": None, "max_abs_error": 0, "saturated": 0, "underflowed": 0, "elements": 1}


def test_refusals(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.html"
    other.write_text("<p>mine")
    refuse(7, "report", "model-fp8", "-o", other, cwd=folder)
    assert other.read_text() == "<p>mine"
    (tmp_path / "loads.json").write_text("[[1, 2]]")
    refuse(4, "report", "model-fp8", "--loads", tmp_path / "loads.json", cwd=folder)
    refuse(4, "report", tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(folder / "model", broken)
    for text in ("[]", "{", "{}", '{"schema": "lingconv.manifest/2"}', "[" * 100_000):
        (broken / MANIFEST).write_text(text)
        done = lingconv("report", broken, "-o", tmp_path / "page.html")
        assert done.returncode == 4, done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "page.html").exists()


class Browser:
    """Headless Chromium that loads one page, and what it asked for and complained of."""

    def __init__(self, page: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        service = Service(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.set_window_size(1280, 900)
        self.driver.get(page.as_uri())

    def scheme(self, name: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": name}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def requests(self) -> list[str]:
        entries = self.driver.get_log("performance")
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        sent = [m for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [message["params"]["request"]["url"] for message in sent]

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[Browser]:
    browser = Browser(folder / "model-fp8-report.html")
    yield browser
    browser.driver.quit()


@needs("browser")
def test_it_renders_in_a_browser(folder: Path, browser: Browser) -> None:
    assert browser.requests() == [(folder / "model-fp8-report.html").as_uri()]
    assert browser.complaints() == []
    cells = browser.run(
        "return [...document.querySelectorAll('#load .cells > i')].map(cell => {"
        "  const box = cell.getBoundingClientRect();"
        "  return [cell.title, box.width, box.height]; })"
    )
    counts = recorded()[1:]
    assert len(cells) == counts.size
    for (title, width, height), count in zip(cells, counts.ravel().tolist(), strict=True):
        assert title.endswith(f": {count:,}")
        assert width > 2
        assert height > 2
    wide = browser.run("return document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0, "the page scrolls sideways"


@needs("browser")
def test_light_and_dark(browser: Browser) -> None:
    colours = {}
    for name in ("light", "dark"):
        browser.scheme(name)
        colours[name] = browser.run(
            "const of = (query, what) =>"
            "  getComputedStyle(document.querySelector(query))[what];"
            "return [of('body', 'backgroundColor'), of('body', 'color'), of('h1', 'fontSize'),"
            "  ...[0, 1, 2, 3, 4, 5, 6, 7, 8].map(n =>"
            "    of(`#load .legend .h${n}`, 'backgroundColor'))]"
        )
    brightness = {
        name: [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in found[:2]]
        for name, found in colours.items()
    }
    assert brightness["light"][0] > 600 > 200 > brightness["light"][1]
    assert brightness["dark"][0] < 200 < 600 < brightness["dark"][1]
    for found in colours.values():
        assert found[2] == "32px", "the style is in force"
        assert len(set(found[3:])) == 9, "levels look different"


@needs("browser")
def test_the_policy_holds(browser: Browser) -> None:
    """A script that somebody got into the page does not run, and a picture is not fetched."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        browser.run(
            "window.ran = false;"
            "const script = document.createElement('script');"
            "script.textContent = 'window.ran = true';"
            "document.body.append(script);"
            "const picture = document.createElement('img');"
            "picture.src = arguments[0];"
            "document.body.append(picture);",
            f"http://127.0.0.1:{server.server_port}/x.png",
        )
        assert browser.run("return window.ran") is False
        assert (
            len([text for text in browser.complaints() if "Content Security Policy" in text]) == 2
        )
        assert asked == []
    finally:
        server.shutdown()
        server.server_close()
