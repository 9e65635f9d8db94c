"""The page in a headless Chromium."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from causal_tune.detector import load_detector
from causal_tune.serving.limits import Limits
from causal_tune.serving.page import Page
from tests.serving.conftest import DETECTOR, MAX_BODY, MAX_IMAGES, Server, png
from tests.serving.test_bad_requests import png_of


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    page = context.new_page()
    complaints: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    page.fill("#token", server.token)
    yield page
    expected = "the server responded with a status of 4"  # the browser reports our own refusals
    assert [text for text in complaints if expected not in text] == []
    assert all(url.startswith((server.url, "blob:", "data:")) for url in asked)
    context.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "<img src=x onerror=alert(1)>.png"
    path.write_bytes(png())
    return path


@pytest.mark.ray
@pytest.mark.slow
class TestPage:
    def test_a_chosen_image_gets_a_verdict_with_its_score(self, page: Any, image: Path) -> None:
        page.set_input_files("#file", image)
        page.wait_for_selector("#results li")
        assert page.inner_text("#results h3") in ("Looks real", "Looks generated")
        assert "not calibrated" in page.inner_text("#results li")
        assert page.inner_text("#status") == page.inner_text("#results h3") + "."
        assert page.inner_text("#results .name") == image.name  # as text, not as HTML
        assert page.locator("#results img").count() == 1
        assert "Trained on alpha only" in page.inner_text(".limits")

    def test_an_image_can_be_dropped(self, page: Any) -> None:
        page.evaluate(
            """bytes => {
                const held = new DataTransfer();
                held.items.add(new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"}));
                document.getElementById("drop").dispatchEvent(
                    new DragEvent("drop", {dataTransfer: held, bubbles: true, cancelable: true}));
            }""",
            list(png()),
        )
        page.wait_for_selector("#results li")
        assert page.inner_text("#results .name") == "dropped.png"

    def test_the_keyboard_is_enough(self, page: Any, image: Path) -> None:
        # listened for before the key is pressed: Chromium does not wait for `expect_file_chooser`
        choosers: list[Any] = []
        page.on("filechooser", lambda chooser: choosers.append(chooser))
        page.focus("#token")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "file"
        page.keyboard.press("Space")
        for _ in range(100):
            if choosers:
                break
            page.wait_for_timeout(50)
        choosers[0].set_files(image)
        page.wait_for_selector("#results li")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
        page.keyboard.press("Enter")
        assert page.is_visible(".card table")

    def test_what_went_wrong_is_said(self, page: Any, image: Path, tmp_path: Path) -> None:
        text = tmp_path / "text.png"
        text.write_text("hello")
        page.set_input_files("#file", [text])
        wide = tmp_path / "wide.png"
        wide.write_bytes(png_of(1001, 1000))
        heavy = tmp_path / "heavy.png"
        heavy.write_bytes(bytes(MAX_BODY))
        page.set_input_files("#file", [text, wide, heavy])
        page.wait_for_selector("#status:has-text('3 images: 3 not judged.')")
        said = {
            item.query_selector(".name").inner_text(): item.inner_text().replace("\n", " ")
            for item in page.query_selector_all("#results li.failed")
        }
        assert "Format not supported" in said["text.png"]
        assert "begins with 'hello'" in said["text.png"]
        assert "Too large" in said["wide.png"]
        assert "limit of 1,000,000" in said["wide.png"]
        assert "Too large" in said["heavy.png"]
        assert "2.0 MB" in said["heavy.png"]
        page.fill("#token", "wrong")
        page.set_input_files("#file", image)
        page.wait_for_selector("#error:has-text('The access token above is not right.')")
        page.fill("#token", "")
        page.set_input_files("#file", image)
        page.wait_for_selector("#error:has-text('Enter the access token above.')")

    def test_many_images_are_sent_in_parts_counted_and_saved(self, page: Any, tmp_path: Path) -> None:
        paths = [tmp_path / f"{seed}.png" for seed in range(MAX_IMAGES + 1)]
        for seed, path in enumerate(paths):
            path.write_bytes(png(seed))
        page.set_input_files("#file", paths)
        page.wait_for_selector("#tools:visible")
        verdicts = [one.verdict for one in load_detector(DETECTOR).score_batch(paths)]
        told = ", ".join(
            f"{verdicts.count(word)} {word}" for word in ("generated", "real") if word in verdicts
        )
        assert page.inner_text("#status") == f"{MAX_IMAGES + 1} images: {told}."
        assert page.locator("#results .crop").count() == MAX_IMAGES + 1
        with page.expect_download() as downloading:
            page.click("#download")
        with Path(downloading.value.path()).open(newline="", encoding="utf-8") as saved:
            rows = list(csv.DictReader(saved))
        assert [(row["name"], row["verdict"]) for row in rows] == [
            (path.name, verdict) for path, verdict in zip(paths, verdicts, strict=True)
        ]
        assert {row["model"] for row in rows} == {load_detector(DETECTOR).id}

    def test_the_bar_marks_where_the_verdict_changes(self, page: Any, image: Path) -> None:
        page.set_input_files("#file", image)
        page.wait_for_selector("#results .bar")
        ends = page.evaluate(
            """() => {
                const [bar, band] = [".bar", ".band"].map(
                    (name) => document.querySelector(name).getBoundingClientRect());
                return [(band.left - bar.left) / bar.width, (band.right - bar.left) / bar.width];
            }"""
        )
        low, high = (load_detector(DETECTOR).description["unsure"][end]["score"] for end in ("low", "high"))
        assert ends == pytest.approx([low, high], abs=0.02)

    @pytest.mark.parametrize("width", [320, 375])
    def test_a_phone_needs_no_sideways_scrolling(self, page: Any, image: Path, width: int) -> None:
        page.set_viewport_size({"width": width, "height": 700})
        page.set_input_files("#file", image)
        page.wait_for_selector("#results li")
        page.click("summary")
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_card_cannot_bring_html_or_scripts() -> None:
    card = "# Card\n\n<script>alert(1)</script>\n\n[x](javascript:alert(1))\n\n## Limits\n\n- <b>bold</b>\n"
    detector = load_detector(DETECTOR)
    detector.description["name"] = 'a"><script>'
    page = Page(detector, card, limits=Limits(), has_token=False)
    text, media_type = page.files()["/"]
    assert media_type == "text/html"
    assert text.count("<script") == 1
    assert "<b>" not in text
    assert 'href="javascript' not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "up to 32 MB each" in text
    assert "{{" not in text
