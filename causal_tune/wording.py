r"""Text on screens and pages: plurals, and text from outside made safe for each form that it is shown in.

A generator, a path or a reason can hold any character. `visible` writes those as escapes that no reader sees, or that
order a terminal about; `html`, `markdown` and `latex` write the rest so that it stands there as it is. The `inline_`
forms take sentences of ours, in which what stands between backticks is code.
"""

import re
from html import escape

__all__ = [
    "html",
    "inline_html",
    "inline_latex",
    "inline_markdown",
    "latex",
    "markdown",
    "markdown_cell",
    "plural",
    "short_repr",
    "shortened",
    "title_of",
    "visible",
]

# control characters, those that turn the direction of text, other ends of lines, halves of characters
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_CODE = re.compile(r"`([^`\n]+)`")
_MINUS = re.compile(r"(?<![\w}-])-(?=\d)")

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\`{}",
    "<": "$<$",  # LaTeX's first font has other signs in these places
    ">": "$>$",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
}
_PLAIN_LATEX = re.compile(r"[ -~À-ÏÑ-ÖØ-Ýß-ïñ-öø-ýÿ]")
"""What pdfLaTeX knows without a package."""

_MARKDOWN = re.compile(
    r"[\\`*~|$]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # within a word it is no emphasis
    r"|<(?=[A-Za-z/!?])|&(?=#?\w+;)"  # a tag, an entity
    r"|!(?=\[)|\](?=[(\[:])"  # a picture, a link
)
_BLOCK = re.compile(r"#{1,6}(?=\s|$)|>|[+-](?=\s|$)|[=-](?=[=\s-]*$)|\d+(?=[.)](?:\s|$))")
"""What begins a heading, a quotation, a list or a rule at the start of a line."""


def visible(text: str, *, keep: str = "") -> str:
    r"""Text without characters that no reader sees: they are written as escapes, but for those in `keep`.

    >>> print(visible("caf\udce9\x1b[2J.png"))
    caf\udce9\x1b[2J.png
    """
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")


def shortened(text: str, most: int) -> str:
    """Text of at most `most` characters; what is left out of its middle is an ellipsis.

    >>> shortened("abcdefgh", 5)
    'ab…gh'
    """
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[len(text) - half :]}"


def short_repr(value: object) -> str:
    """A value as an error shows it: at most 60 characters of its `repr`.

    >>> short_repr({"a": None})
    "{'a': None}"
    """
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def plural(number: int, noun: str, many: str = "") -> str:
    """A number with its noun, of which `many` is the plural where that is not one with an s.

    >>> plural(1, "image"), plural(1200, "image"), plural(2, "miss", "misses")
    ('1 image', '1,200 images', '2 misses')
    """
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def title_of(column: str) -> str:
    """The title of a table's column, without the mark of its kind: `<` for text, `>` for numbers, the default.

    A title that comes from outside needs the mark, since it can end in one of the two.

    >>> title_of("role<"), title_of("AP"), title_of("sdxl<>")
    ('role', 'AP', 'sdxl<')
    """
    return column[:-1] if column.endswith(("<", ">")) else column


def html(text: str) -> str:
    """Text as HTML, for content and for attributes in quotes.

    >>> html("<b> & \\x1b")
    '&lt;b&gt; &amp; \\\\x1b'
    """
    return escape(visible(text, keep="\n"))


def inline_html(text: str) -> str:
    """A sentence as HTML: escaped, with what stands between backticks as code.

    >>> inline_html("`a < b` & c")
    '<code>a &lt; b</code> &amp; c'
    """
    return _CODE.sub(r"<code>\1</code>", html(text))


def markdown(text: str) -> str:
    r"""Text as a paragraph or a heading of Markdown that shows it as it is.

    >>> print(markdown("# *sdxl*_[turbo](x) | <b>"), markdown("sd_1-4 [85.0, 94.0]"))
    \# \*sdxl\*\_[turbo\](x) \| \<b> sd_1-4 [85.0, 94.0]
    """
    return _paragraph(_signs(text))


def markdown_cell(text: str) -> str:
    r"""Text as a cell of a Markdown table, or in the middle of a line.

    >>> print(markdown_cell("- a|b"))
    - a\|b
    """
    return _signs(text).strip()


def inline_markdown(text: str) -> str:
    r"""A sentence as Markdown, with what stands between backticks as code.

    >>> print(inline_markdown("Run `a_b | c` *now*."))
    Run `a_b | c` \*now\*.
    """
    parts = enumerate(_CODE.split(text))
    return _paragraph("".join(f"`{visible(part)}`" if place % 2 else _signs(part) for place, part in parts))


def _signs(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", visible(text))


def _paragraph(text: str) -> str:
    text = text.strip()
    found = _BLOCK.match(text)
    if found is None:
        return text
    # of a number it is the dot behind that makes it a list
    at = found.end() if found[0].isdecimal() else 0
    return f"{text[:at]}\\{text[at:]}"


def latex(text: str) -> str:
    r"""Text as LaTeX that every engine takes; letters that pdfLaTeX lacks are written by their number.

    >>> print(latex("50 % of --degrade is -1.0 中"))
    50 \% of -{}-degrade is $-$1.0 [U+4E2D]
    """
    words = re.sub(r"[ \n\t]+", " ", visible(text, keep="\n\t"))
    signs = "".join(
        _LATEX.get(sign, sign if _PLAIN_LATEX.match(sign) else f"[U+{ord(sign):04X}]") for sign in words
    )
    return _MINUS.sub("$-$", signs.replace("--", "-{}-"))  # two are an option's, and no dash


def inline_latex(text: str) -> str:
    r"""A sentence as LaTeX, with what stands between backticks in typewriter letters.

    >>> print(inline_latex("50 % of `--degrade`"))
    50 \% of \texttt{-{}-degrade}
    """
    parts = enumerate(_CODE.split(text))
    return "".join(rf"\texttt{{{latex(part)}}}" if place % 2 else latex(part) for place, part in parts)
