"""The page at /: drop an image, see the verdict, its uncertainty and the limits of the model card.

Three constant files: nothing on the page comes from another address, and no script stands in the HTML.
"""

import json
import re
from html import escape
from importlib.resources import files
from typing import Any

from markdown_it import MarkdownIt

from causal_tune.detector import Detector
from causal_tune.serving.limits import Limits

__all__ = ["Page"]


class Page:
    """The page of one detector."""

    def __init__(self, detector: Detector, card: str, *, limits: Limits, has_token: bool) -> None:
        self._detector = detector
        self._card = card
        self._limits = limits
        self._has_token = has_token

    def files(self) -> dict[str, tuple[str, str]]:
        """Path -> content and media type."""
        folder = files("causal_tune.serving") / "static"
        return {
            "/": (self._html((folder / "page.html").read_text("utf-8")), "text/html"),
            "/page.css": ((folder / "page.css").read_text("utf-8"), "text/css"),
            "/page.js": ((folder / "page.js").read_text("utf-8"), "text/javascript"),
        }

    def _html(self, template: str) -> str:
        limits, rest = _limits_of(self._card)
        settings: dict[str, Any] = {
            "maxImages": self._limits.max_images,
            "maxBytes": self._limits.max_body_bytes,
            "calibrated": self._detector.description["calibration"] is not None,
            "band": self._band(),
            "cropSize": self._detector.preprocessing.crop_size,
            "model": self._detector.id,
        }
        values = {
            "name": escape(self._detector.name),
            "model": escape(self._detector.id),
            "settings": escape(json.dumps(settings)),
            "token": "" if self._has_token else "hidden",
            "megabytes": f"{self._limits.max_body_bytes / 2**20:g}",
            "crop": str(self._detector.preprocessing.crop_size),
            "limits": _to_html(limits),
            "card": _to_html(rest),
        }
        return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)

    def _band(self) -> list[float]:
        """Where the verdict changes, on the scale that the page shows."""
        description = self._detector.description
        scale = "score" if description["calibration"] is None else "probability"
        return [description["unsure"][end][scale] for end in ("low", "high")]


def _to_html(markdown: str) -> str:
    # HTML in the card is shown as text, and only links of harmless kinds are made
    return str(MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown))


def _limits_of(card: str) -> tuple[str, str]:
    """What stands under the card's headings `Where it fails` and `Limits`, and the rest.

    >>> _limits_of("# A\\n\\nText.\\n\\n## Limits\\n\\n- One.\\n\\n## More\\n\\nEnd.")
    ('### Limits\\n\\n- One.', '# A\\n\\nText.\\n\\n## More\\n\\nEnd.')
    """
    section = re.compile(r"^## (Where it fails|Limits)\n(.*?)(?=^## |\Z)", flags=re.M | re.S)
    found = [f"### {name}\n\n{text.strip()}" for name, text in section.findall(card)]
    return "\n\n".join(found) or "The model card names no limits.", section.sub("", card)
