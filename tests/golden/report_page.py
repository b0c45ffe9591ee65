"""What a report of scores shows, without its markup."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

HEADINGS = ("h1", "h2", "h3")


class ReportPage(HTMLParser):
    """What a report shows, without its markup: headings, tables' cells, how many pictures and charts."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.pictures = self.charts = 0
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.pictures += tag == "img"
        self.charts += tag == "svg"
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th") and self.tables:
            self.tables[-1][-1].append("")
        elif tag in HEADINGS:
            self.headings.append("")
        if tag in (*HEADINGS, "td", "th"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            self._open.remove(tag)

    def handle_data(self, data: str) -> None:
        if not self._open:
            return
        if self._open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data.strip()
        else:
            self.headings[-1] += data.strip()


def report_facts(folder: Path) -> dict[str, object]:
    """Files of a report; headings and table heads of its page, and how much of each kind it shows."""
    [page] = folder.glob("*.html")
    parser = ReportPage()
    parser.feed(page.read_text("utf-8"))
    return {
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()),
        "headings": parser.headings,
        "pictures": parser.pictures,
        "charts": parser.charts,
        "tables": [
            {"head": rows[0], "rows": len(rows), "first": [number(row[0]) for row in rows if row]}
            for rows in parser.tables
        ],
        "numbers": [
            [number(cell) for row in rows[1:] for cell in row[1:] if isinstance(number(cell), float)]
            for rows in parser.tables
        ],
    }


def number(cell: str) -> float | str:
    """A cell's number, or its text."""
    try:
        return float(cell.rstrip("%").replace(",", ""))
    except ValueError:
        return cell
