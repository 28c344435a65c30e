from html.parser import HTMLParser

from deformable_detr.report.page import (
    Section,
    cards,
    command,
    folded,
    grid,
    matrix_table,
    page,
    paragraph,
    pictures,
    table,
)

VOID = {"meta", "link", "img", "br", "input"}
ODD = '<script>alert("1")</script> & é'


class Tree(HTMLParser):
    """Fails where tags do not match; collects what a test asks for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.words = [], [], set(), [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        self.ids |= {value for name, value in attrs if name == "id"}
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_sections_without_content_are_left_out_and_links_lead_somewhere():
    text = page(
        "Run", "sub", [], [Section("a", "One", "<p>x</p>"), Section("b", "Two", ""), Section("c", "Three", "y")]
    )
    tree = Tree(text)
    assert [link for link in tree.links if link.startswith("#")] == ["#a", "#c"]
    assert {"a", "c"} <= tree.ids
    assert "Two" not in tree.words
    assert "note" not in {attributes.get("role") for _, attributes in tree.tags}


def test_the_page_fetches_nothing_and_says_so_to_the_browser():
    tree = Tree(page("Run", "", [], [Section("a", "One", "x")]))
    assert all(link.startswith(("#", "data:")) for link in tree.links)
    policy = next(a["content"] for tag, a in tree.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert not [tag for tag, _ in tree.tags if tag == "script"]


def test_texts_are_escaped():
    uri = "data:image/jpeg;base64,AA=="
    content = (
        paragraph(ODD)
        + cards([(ODD, ODD)])
        + table(ODD, (ODD, ODD), [[ODD, ODD]], bars=[0.5])
        + matrix_table(ODD, ODD, [ODD], [[1]], [[1.0]])
        + pictures([(ODD, ODD, ODD, uri, (3, 4))])
        + folded(ODD, command(ODD))
    )
    tree = Tree(page(ODD, ODD, [ODD], [Section("a", ODD, content)]))
    assert not [tag for tag, _ in tree.tags if tag == "script"]
    assert sum(ODD in words for words in tree.words) >= 15


def test_tables_name_their_rows_and_columns_and_scroll():
    tree = Tree(
        table("All", ("class", "AP", "what"), [["cat", "51.5", "4 of 5 legs"], ["dog", "-", "a"]], bars=[0.5, None])
    )
    attributes = [a for tag, a in tree.tags if tag == "div"]
    assert attributes == [{"class": "scroll", "tabindex": "0", "role": "group", "aria-label": "All"}]
    assert sum(a.get("scope") == "row" for _, a in tree.tags) == 2
    assert sum(a.get("scope") == "col" for _, a in tree.tags) == 3
    assert [a["style"] for tag, a in tree.tags if tag == "i"] == ["width:50.0%", "width:0.0%"]
    numbers = [a.get("class") for tag, a in tree.tags if tag == "td" and a.get("aria-hidden") is None]
    assert numbers == ["n", None, "n", None]


def test_empty_parts_are_nothing():
    assert pictures([]) == grid([]) == grid(["", ""]) == folded("more", "") == ""
