"""Find local links that lead nowhere, in built pages and in Markdown files.

    python docs/check_links.py docs/_build README.md docs tutorials

A folder with an ``index.html`` is a set of built pages; any other argument is a Markdown file, or a folder of these,
whose links are followed as GitHub follows them. Links to other hosts are not followed.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
TARGET = re.compile(r"^\(([^)\s]+)\)=\s*$", re.MULTILINE)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")

MADE = {"_build", "generated", "jupyter_execute", "tutorials"}
"""Folders of docs/ that a build makes."""


class Page(HTMLParser):
    """Targets and links of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.links |= {values[name] for name in ("href", "src") if name in values}


@cache
def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@cache
def anchors(path: Path) -> set[str]:
    """Fragments that a link may name in a file: HTML ids; GitHub's names of headings, and MyST targets."""
    if path.suffix == ".html":
        return page(path).anchors
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    found: set[str] = set(TARGET.findall(text))
    for heading in HEADING.findall(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = 0
        while (name := slug if number == 0 else f"{slug}-{number}") in found:
            number += 1
        found.add(name)
    return found


def links(path: Path) -> set[str]:
    if path.suffix == ".html":
        return page(path).links
    return set(LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8"))))


def broken(path: Path) -> list[str]:
    """One message for each local link of a file that leads nowhere."""
    messages = []
    for link in sorted(links(path)):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
        if target.is_dir() and path.suffix == ".html":
            target = target / "index.html"
        if not target.exists():
            messages.append(f"{path}: no file {link}")
        elif parts.fragment and target.suffix in {".html", ".md"} and unquote(parts.fragment) not in anchors(target):
            messages.append(f"{path}: no place {link}")
    return messages


def files(argument: Path) -> list[Path]:
    """The files to look at: Markdown, or pages below a folder that has an index.html."""
    if not argument.is_dir():
        return [argument]
    if (argument / "index.html").exists():
        return sorted(argument.rglob("*.html"))
    return sorted(path for path in argument.rglob("*.md") if path.relative_to(argument).parts[0] not in MADE)


def main(arguments: list[str]) -> int:
    looked_at = [path for argument in arguments for path in files(Path(argument))]
    messages = [message for path in looked_at for message in broken(path)]
    number = sum(len(links(path)) for path in looked_at)
    print("\n".join([*messages, f"{number} links in {len(looked_at)} files, {len(messages)} lead nowhere"]))
    return 1 if messages or not looked_at else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
