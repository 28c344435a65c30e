"""Plain text in the HTML of the page: escaped, and never so long that it fills the page."""

from html import escape

from deformable_detr.core.short_text import LONGEST_LINE, shortened


def html_text(text: str) -> str:
    """HTML of plain text, such as the name of a class; one of thousands of letters loses its middle."""
    return escape(shortened(text, LONGEST_LINE))
