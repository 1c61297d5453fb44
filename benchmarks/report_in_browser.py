"""Opens a report page in headless Chromium, at 1280 and at 400 pixels, and says what is wrong with it.

    python benchmarks/report_in_browser.py PAGE [--keep FOLDER] [--chromium /usr/bin/chromium]

Needs `pip install playwright` and a Chromium. Fails on a script error, a request to anywhere, a chart that is
missing or not visible, text smaller than 8 pixels, or a page wider than its window. Last line: JSON.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

WIDTHS = (1280, 400)
LEAST_TEXT_PX = 8.0

_LOOK = """() => {
  const size = element => element.getBoundingClientRect();
  const seen = element => size(element).width > 100 && size(element).height > 100;
  const sections = [...document.querySelectorAll('section')].filter(section => section.querySelector('.chart'));
  const charts = sections.map(section => ({
    name: section.id,
    visible: [...section.querySelectorAll('svg')].filter(seen).length,
    texts: [...section.querySelectorAll('svg')].filter(seen).flatMap(svg => [...svg.querySelectorAll('text')])
      .map(text => size(text).height).filter(height => height > 0),
  }));
  return { charts, width: document.documentElement.scrollWidth, window: window.innerWidth };
}"""


def look(page_path: Path, chromium: str, keep: Path | None) -> tuple[list[str], list[dict[str, object]]]:
    """What is wrong, and what was seen at each width."""
    from playwright.sync_api import sync_playwright

    wrong: list[str] = []
    seen: list[dict[str, object]] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in WIDTHS:
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on("pageerror", lambda error: wrong.append(f"script error: {error}"))
            page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
            page.on(
                "request",
                lambda asked: None if asked.url.startswith("file:") else wrong.append(f"asks {asked.url}"),
            )
            page.goto(page_path.resolve().as_uri())
            found = page.evaluate(_LOOK)
            if not found["charts"]:
                wrong.append(f"{width} px: no charts")
            for chart in found["charts"]:
                if chart["visible"] != 1:
                    wrong.append(f"{width} px: {chart['name']} has {chart['visible']} visible charts, not one")
                if chart["texts"] and min(chart["texts"]) < LEAST_TEXT_PX:
                    wrong.append(f"{width} px: {chart['name']} has text of {min(chart['texts']):.1f} px")
            if found["width"] > found["window"]:
                wrong.append(f"{width} px: the page is {found['width']} px wide")
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                page.screenshot(path=str(keep / f"report-{width}.png"), full_page=True)
            seen.append({"width": width, "charts": [chart["name"] for chart in found["charts"]]})
            page.close()
        browser.close()
    return wrong, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--keep", type=Path, help="a folder for screenshots")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "/usr/bin/chromium")
    args = parser.parse_args()
    wrong, seen = look(args.page, args.chromium, args.keep)
    for each in wrong:
        print(each)
    print(json.dumps({"benchmark": "report_in_browser", "ok": not wrong, "seen": seen, "wrong": wrong}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
