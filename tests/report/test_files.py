"""Plots, Markdown and the HTML report."""

import base64
import re
from html.parser import HTMLParser

import pytest

from momo_cli import figures
from momo_cli.errors import UserError
from momo_cli.report import html, markdown, plot
from momo_cli.report.advice import advise
from momo_cli.report.exports import FORMATS, Target
from momo_cli.report.varied import VariedReport
from momo_cli.runs import Run

BAD = "<script>alert('x')</script> a|b $c$ _d `e`"


@pytest.mark.parametrize("kind", plot.KINDS)
@pytest.mark.parametrize("suffix", plot.SUFFIXES)
def test_every_plot_in_every_form(make_report, tmp_path, kind, suffix):
    path = tmp_path / f"p{suffix}"
    report = make_report(("momo", "momo-adam", "sgd-m", "adam"))
    shown = VariedReport("width", [8, 16], [report] * 2) if kind == "transfer" else report
    content = plot.render(shown, Target(str(path), kind))
    assert content[:4] in (b"\x89PNG", b"%PDF", b"<?xm")


def test_what_the_plots_say(make_report):
    report = make_report(("momo", "momo-adam", "sgd-m", "adam"))
    text = plot.svg(report, "lr")
    for words in ("momo-adam", "sgd-m", "learning rate", "final val_loss", "ℓ0 = 2.32 (before training)", "good range"):
        assert words in text
    assert plot.svg(report, "lr") == text  # the same report, the same file
    assert "training loss" in plot.svg(report, "curves") and "1 (best)" in plot.svg(report, "curves")
    text = plot.svg(report, "steps")
    assert "step size taken" in text and "cap" in text and "momo, lr 1" in text and "sgd-m" not in text


def test_plots_of_little(make_report):
    one = make_report(("adam",), lrs=1, seeds=1)
    assert "adam" in plot.svg(one, "lr")
    for run in one.runs:
        run.curve = []
    for kind in ("curves", "steps"):
        with pytest.raises(UserError, match="nothing to plot|no curves|no step sizes"):
            plot.svg(one, kind)
    one.runs = [Run("adam", 0.1, status="failed")]
    one.figures = figures.analyze(one.runs)
    with pytest.raises(UserError, match="nothing to plot"):
        plot.svg(one, "lr")
    assert "no run ended" in html.render(one)


def test_a_plot_that_cannot_be_made(monkeypatch):
    with pytest.raises(UserError, match="must end in .png, .svg or .pdf"):
        plot.check(Target("a.gif"))
    with pytest.raises(UserError, match="Did you mean 'curves'"):
        plot.check(Target("a.png", "curve"))
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'momo-opt\[plot\]'"):
        plot.check(Target("a.png"))


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.links, self.words = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


def test_the_html_report_is_whole_and_safe(make_report):
    report = make_report(("momo", "sgd-m", BAD), task=BAD, failing=True)
    report.objective, report.lines, report.settings = BAD, [BAD], {"data": BAD}
    for run in report.runs:
        if run.status == "failed":
            run.error = BAD
    report.advice = advise(report)
    page = Reader(html.render(report))
    assert "script" not in page.tags and page.words.count(BAD) >= 4
    assert page.tags.count("img") == 3 and all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    text = " ".join(page.words)
    assert report.advice.code.splitlines()[1] in text and "Warning: " in text and "torch" in text
    for link in page.links:
        drawn = base64.b64decode(link.partition(",")[2]).decode()
        assert "<script" not in drawn


def test_markdown(make_report):
    report = make_report(("momo", "sgd-m"), task="a|b <i>")
    report.advice = advise(report)
    text = markdown.render(report)
    assert text.startswith("## a\\|b &lt;i&gt;")
    tables = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.M)
    assert len(tables) == 2 and all(
        len({len(re.findall(r"(?<!\\)\|", row)) for row in t.splitlines()}) == 1 for t in tables
    )
    assert "```python\nimport momo\n" in text and "`epochs=5`" in text and "A note." in text


def test_every_format_is_written_from_its_entry_alone(make_report, tmp_path):
    names = {"json": "r.json", "csv": "r.csv", "markdown": "r.md", "plot": "r.png", "report": "r.html"}
    for form in FORMATS:
        target = Target(str(tmp_path / names[form.name]))
        form.check(target)
        form.write(make_report(), target)
        assert target.path.stat().st_size > 100
        with pytest.raises(UserError, match=f"--{form.name} .* is a folder"):
            form.check(Target(str(tmp_path)))
