import base64
import html.parser
import inspect
import io
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from helpers import rows, write_run
from PIL import Image

from isjax import recipes
from isjax.data.dataset import save
from isjax.reporting import page
from isjax.reporting.page import write_page
from isjax.reporting.runs import load_runs
from isjax.reporting.timeline import PARTS

VOID = {"meta", "br", "img"}
EVIL = ("cat", '<script>alert("1")</script>', "a & b's </pre>")


class Page(html.parser.HTMLParser):
    """HTML as a tree of elements; tags must match."""

    def __init__(self, text):
        super().__init__()
        self.builder, self.open = ET.TreeBuilder(), []
        self.feed(text)
        self.close()
        assert not self.open
        self.root = self.builder.close()
        self.css = [style.text for style in self.root.iter("style")]
        for style in self.root.iter("style"):
            style.text = None

    def handle_starttag(self, tag, attrs):
        self.builder.start(tag, {name: value or "" for name, value in attrs})
        self.open.append(tag)
        if tag in VOID:
            self.handle_endtag(tag)

    def handle_startendtag(self, tag, attrs):
        self.builder.start(tag, {name: value or "" for name, value in attrs})
        self.builder.end(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> in line {self.getpos()[0]}"
        self.builder.end(tag)

    def handle_data(self, data):
        self.builder.data(data)

    def all(self, tag=None):
        return list(self.root.iter(tag))

    @property
    def text(self):
        """What a reader sees, with single spaces."""
        return " ".join(" ".join(self.root.itertext()).split())

    @property
    def ids(self):
        return [element.get("id") for element in self.all() if "id" in element.attrib]

    @property
    def targets(self):
        """Ids that attributes refer to."""
        values = [value for element in self.all() for value in element.attrib.values()]
        in_styles = [part.partition(")")[0] for v in values for part in v.split("url(#")[1:]]
        return in_styles + [link[1:] for link in self._links() if link.startswith("#")]

    @property
    def links(self):
        """Files that attributes refer to."""
        return [link for link in self._links() if not link.startswith("#")]

    def _links(self):
        names = ("src", "href", "xlink:href", "srcset", "data", "action")
        return [element.get(n) for element in self.all() for n in names if n in element.attrib]

    @property
    def cards(self):
        """Classes of the examples shown."""
        classes = [element.get("class", "") for element in self.all()]
        return [names for names in classes if names.split()[:1] == ["card"]]

    @property
    def unthemed(self):
        """Drawn elements whose colour is no variable: black, which no theme changes."""
        found = []

        def visit(element, inherited):
            styles = inherited | declarations(element.get("style", ""))
            colours = [value for name, value in styles if name in ("fill", "stroke")]
            themed = ("fill", "none") in styles or any(c.startswith("var(") for c in colours)
            if element.tag in ("use", "path") and not themed:
                found.append(element)
            for child in element:
                if child.tag != "defs":
                    visit(child, styles)

        visit(self.root, set())
        return found


def declarations(css):
    """Pairs of property and value."""
    pairs = (line.partition(":") for line in css.split(";") if line.strip())
    return {(name.strip(), value.strip()) for name, _, value in pairs}


def finish(folder, method, seed=0, x=None, seeds_end=0.4, **examples):
    """A finished run with all artifacts of a report."""
    rng = np.random.default_rng(seed)
    write_run(folder, method, seed, rows([2.0, 1.0, seeds_end], [0.1, 0.5, 0.7], 1.0))
    text = (folder / "metrics.jsonl").read_text().splitlines()
    lines = [json.dumps(json.loads(t) | {"coverage": i / 2}) for i, t in enumerate(text)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    steps = [{"step": 10 * i, "ess": 1 / i, "max_weight": i, "unique": 0.9} for i in (1, 2, 3)]
    (folder / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    scores = np.ones(200) if method == "uniform" else rng.uniform(0.01, 4, 200)
    losses = scores + rng.uniform(0, 1, 200)
    save(folder / "draws.npz", count=np.arange(50), scores=scores, losses=losses, probs=scores)
    seconds = dict.fromkeys(PARTS, 0.1 / len(PARTS))
    (folder / "time.json").write_text(json.dumps({"step": 10, "seconds": seconds}))
    show(folder, **{"label": ["a", "b"], "prediction": ["a", "a"], "x": x, **examples})


def show(folder, ids=(7, 3), count=(2_000_000_000, 0), loss=(1.23456, np.nan), **more):
    given = {name: np.asarray(values) for name, values in more.items() if values is not None}
    arrays = {"ids": np.array(ids, int), "count": np.array(count, np.int32)}
    save(folder / "examples.npz", **arrays, loss=np.array(loss, np.float32), **given)


def read(folder, output=None):
    path = write_page(load_runs([folder]), output or folder / "report")
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture
def no_figures(monkeypatch):
    """For tests of the rest of the page: figures take most of the time."""
    monkeypatch.setattr(page, "_write_figures", lambda *_: {"curves": ""})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three methods, two seeds of one; names and texts that are HTML."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder / "u", "uniform")
    for seed in (0, 1):
        finish(folder / f"l{seed}", "loss", seed, label=EVIL[:2], prediction=EVIL[1:])
    finish(folder / "t", "by_text", text=["to <b>be</b> & not", "x" * 500])
    return folder, *read(folder)


@pytest.mark.slow
def test_the_page_is_whole_html_with_each_id_once_and_each_target_there(whole):
    _, _, found = whole
    assert len(found.ids) == len(set(found.ids)) > 100 and len(found.targets) > 100
    assert set(found.targets) <= set(found.ids)
    tags = {element.tag for element in found.all()}
    assert {"html", "head", "body", "h1", "table", "figure", "svg", "footer"} <= tags


@pytest.mark.slow
def test_the_page_needs_no_other_file_and_names_none(whole):
    folder, text, found = whole
    assert all(link.startswith("data:image/png;base64,") for link in found.links)
    tags = {element.tag for element in found.all()}
    assert not {"script", "link", "iframe", "object"} & tags
    assert "@import" not in text and all(part[0] == "#" for part in text.split("url(")[1:])
    assert "://" not in text
    assert str(folder) not in text and "index.html" not in text and ".png" not in text


def test_a_path_appears_only_in_a_note(tmp_path, no_figures):
    write_run(tmp_path / "u<b>", rows=rows([2.0, 1.0], [0.1, 0.5], 1.0))
    text, found = read(tmp_path)
    assert text.count(str(tmp_path)) == 1
    assert f"Note: {tmp_path / 'u<b>'} is at step 10 of 20." in found.text


def test_each_figure_is_also_a_png(whole):
    folder, _, found = whole
    names = {"curves", "time", "diagnostics", "draws", "predictions"}
    written = {path.name for path in (folder / "report").iterdir()}
    assert written == {"index.html", *(f"{name}.png" for name in names)}
    for name in names:
        with Image.open(folder / f"report/{name}.png") as image:
            assert image.width > 1000 and image.getpixel((1, 1))[:3] == (255, 255, 255)
    assert len(found.all("figure")) == 5


def test_all_that_is_drawn_has_a_colour_of_the_themes(whole):
    _, _, found = whole
    assert found.unthemed == []
    drawn = [element for figure in found.all("svg") for element in figure.iter()]
    styles = set().union(*(declarations(element.get("style", "")) for element in drawn))
    used = {value for name, value in styles if name.endswith(("fill", "stroke", "color"))}
    assert used > {"none"} and all(value.startswith("var(--") for value in used - {"none"})
    assert {value for _, value in styles if "var(" in value} == used - {"none"}
    # Attributes other than `style` cannot use var().
    assert not [v for e in drawn for name, v in e.items() if name != "style" and "var(" in v]
    light, dark = (part.partition("}")[0] for part in found.css[0].split(":root {")[1:])
    for theme in (light, dark):
        defined = {name for name, _ in declarations(theme)}
        assert {value[4:-1] for value in used - {"none"}} <= defined
        assert set(page._THEMED.values()) <= defined


@pytest.mark.slow
def test_the_page_is_the_same_at_every_call(whole, tmp_path):
    folder, text, _ = whole
    again, _ = read(folder, tmp_path / "made/anew")
    assert again == text
    for path in (folder / "report").glob("*.png"):
        assert path.read_bytes() == (tmp_path / "made/anew" / path.name).read_bytes()


def test_names_and_texts_are_escaped(whole):
    _, text, found = whole
    assert "<script" not in text and "<b>" not in text
    for shown in (EVIL[1], f"→ {EVIL[2]}", "to <b>be</b> & not"):
        assert shown in found.text
    assert "x" * 140 + "…" in found.text and "x" * 141 not in found.text


def test_names_of_data_sets_and_methods_are_escaped(tmp_path):
    names = ["<i>loss</i> & --> more", "a_b^c", "größer"]
    for i, name in enumerate(names):
        end = rows([2.0, 1.0, 0.5], [0.1, 0.5, 0.6], 1)
        write_run(tmp_path / str(i), name, rows=end, dataset=names[0])
    text, found = read(tmp_path)
    assert "<i>" not in text and f"{names[0]}: sampling methods compared" in found.text
    assert f"3 runs of {', '.join(sorted(names))}." in found.text


def test_verdicts_compare_each_finished_method_with_uniform(tmp_path, no_figures):
    """Uniform ends at loss 0.4, accuracy 0.7 after 2 s; the quick are there after 0.5 s, 0.7 s."""
    write_run(tmp_path / "u", "uniform", 0, rows([2.0, 1.0, 0.4], [0.1, 0.5, 0.7], 1.0))
    write_run(tmp_path / "q0", "quick", 0, rows([2.0, 0.4, 0.3], [0.1, 0.5, 0.6], 0.5))
    write_run(tmp_path / "q1", "quick", 1, rows([2.0, 0.3, 0.2], [0.1, 0.5, 0.7], 0.7))
    write_run(tmp_path / "h0", "half", 0, rows([2.0, 0.4, 0.3], [0.1, 0.5, 0.6], 1.0))
    write_run(tmp_path / "h1", "half", 1, rows([2.0, 1.0, 0.9], [0.1, 0.5, 0.6], 1.0))
    write_run(tmp_path / "s", "slow", 0, rows([2.0, 1.0, 0.9], [0.1, 0.5, 0.25], 1.0))
    write_run(tmp_path / "e", "even", 0, rows([2.0, 1.0, 0.40001], [0.1, 0.5, 0.7], 1.0))
    write_run(tmp_path / "w0", "wild", 0, rows([2.0, 1.0, np.nan], [0.1, 0.5, 0.25], 1.0))
    write_run(tmp_path / "w1", "wild", 1, rows([2.0, 1.0, 0.3], [0.1, 0.5, 0.75], 1.0))
    write_run(tmp_path / "n", "stopped", 0, rows([2.0, np.nan], [0.1, 0.1], 1.0))
    write_run(tmp_path / "g", "going", 0, rows([2.0, 0.1], [0.1, 0.9], 1.0))
    _, found = read(tmp_path)
    goal, final = "uniform's final train loss", "Final test accuracy"
    one = ", one seed: it may be noise, so compare three or more. "
    for verdict in (
        f"quick reaches {goal} in 30% of uniform's training time. {final}: 0.65 against 0.7{one}",
        f"half reaches {goal} in 50% of uniform's training time (1 of 2 seeds). {final}: 0.6 ",
        f"slow never reaches {goal}. {final}: 0.25 against 0.7{one}",
        f"even ends at {goal}, 0.4. {final}: 0.7 against 0.7. ",
        f"stopped diverged: its final train loss is not finite. {final}: 0.1 against 0.7{one}",
        f"wild diverged: its final train loss is not finite (1 of 2 seeds). {final}: 0.5 ",
    ):
        assert verdict in found.text
    assert "going reaches" not in found.text and "going never" not in found.text
    write_run(tmp_path / "u", "uniform", 0, rows([2.0, 1.0], [0.1, 0.5], 1.0))  # still going
    assert "reaches" not in read(tmp_path)[1].text
    write_run(tmp_path / "u", "uniform", 0, rows([2.0, 1.0, np.nan], [0.1, 0.5, 0.1], 1.0))
    text = read(tmp_path)[1].text
    assert "slow ends at a train loss of 0.9, but uniform diverged." in text
    assert "uniform diverged: its final train loss is not finite. even" in text


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        ((0.9875, 0.9892), "against 0.9882, 2 seeds: within noise. "),
        ((0.90, 0.901), "against 0.9882, 2 seeds: more than noise. "),
        ((0.9891, 0.9873), "0.9882 against 0.9882, 2 seeds: within noise. "),
        ((0.9892, 0.9872), "0.9882 against 0.9882. "),
        ((0.99, 0.99, 0.99), "0.99 against 0.9882, 2 seeds: within noise. "),
    ],
)
def test_verdicts_say_when_seeds_cannot_tell(tmp_path, no_figures, accuracies, verdict):
    for method, ends in (("uniform", (0.9892, 0.9872)), ("loss", accuracies)):
        for seed, end in enumerate(ends):
            lines = rows([2.0, 1.0, 0.4], [0.1, 0.5, end], 1.0)
            write_run(tmp_path / f"{method}{seed}", method, seed, lines)
    assert verdict in read(tmp_path)[1].text


def test_settings_and_origin_are_at_the_end_of_the_page(tmp_path, no_figures):
    for name, rate in (("uniform", 0.1), ("loss", 0.05)):
        write_run(tmp_path / name, name, rows=rows([2.0, 1.0, 0.4], [0.1, 0.5, 0.7], 1.0))
        config = json.loads((tmp_path / name / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps(config | {"rate": rate}))
    origin = "isjax 1.2.3, 2030-01-02 03:04 UTC: python -m isjax.report '<b>'"
    path = write_page(load_runs([tmp_path]), tmp_path / "report", origin)
    found = Page(path.read_text(encoding="utf-8"))
    end = found.text.partition("Configuration Settings in which the runs differ")[2]
    assert "method seeds rate uniform 0 0.1 loss 0 0.05 " in end and f"by {origin}. " in end


def test_a_narrow_screen_says_that_tables_scroll_and_no_text_says_left_or_right(whole):
    _, _, found = whole
    (cue,) = (e for e in found.all("p") if "cue" in e.get("class", "").split())
    assert cue.text.startswith("Scroll tables and figures sideways")
    assert ".cue { display: none; }" in found.css[0]
    assert "@media (max-width: 62rem) { .cue { display: block; } }" in found.css[0]
    assert not re.search(r"\b(left|right)\b", found.text, re.IGNORECASE)


def test_methods_of_isjax_are_described_by_the_summary_of_their_docstring(tmp_path, no_figures):
    for method in ("uniform", "learned_loss", "my_own"):
        write_run(tmp_path / method, method, 0, rows([2.0, 1.0], [0.1, 0.5], 1.0))
    _, found = read(tmp_path)
    first = found.all("dl")[0]
    names, texts = ([e.text for e in first.iter(tag)] for tag in ("dt", "dd"))
    assert dict(zip(names, texts, strict=True)) == {
        name: inspect.getdoc(getattr(recipes, name)).splitlines()[0].replace("`", "")
        for name in ("uniform", "learned_loss")
    }


def test_three_seeds_have_an_interval_after_the_final_values(tmp_path, no_figures):
    for seed, end in enumerate((0.1, 0.2, 0.3)):  # 4.303 deviations of the mean to either side
        write_run(tmp_path / str(seed), "loss", seed, rows([2.0, 1.0, end], [0.1, 0.5, 0.7], 1))
    write_run(tmp_path / "u", "uniform", 0, rows([2.0, 1.0, 0.4], [0.1, 0.5, 0.7], 1))
    _, found = read(tmp_path)
    heading, uniform, loss = ([cell.text or "" for cell in row] for row in found.all("tr"))
    assert [i for i, name in enumerate(heading) if name.startswith("95%")] == [5, 7, 9]
    assert loss[4:6] == ["0.200 ± 0.100", "-0.04841 to 0.4484"]
    assert loss[6:10] == ["1.000 ± 0.000", "1 to 1", "0.7000 ± 0.0000", "0.7 to 0.7"]
    assert uniform[4:10] == ["0.400", "", "1.000", "", "0.7000", ""]
    assert len(loss) == len(heading) == 14


def cards_of(folder, inputs):
    """The page of a method for each input, whose only artifacts are two examples."""
    for i, x in enumerate(inputs):
        write_run(folder / str(i), f"m{i}", rows=rows([2.0, 1.0, 0.4], [0.1, 0.5, 0.7], 1.0))
        show(folder / str(i), x=x)
    return read(folder)[1]


def pictures_of(found):
    return [image for image in found.all("img") if image.get("alt", "").startswith("example ")]


def test_images_are_shown_unchanged(tmp_path, no_figures):
    rng = np.random.default_rng(0)
    shapes = [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4)]
    images = [rng.integers(0, 256, (2, *shape)).astype(np.uint8) for shape in shapes]
    shown = [image.get("src") for image in pictures_of(cards_of(tmp_path, images))]
    for source, expected in zip(shown, [image for pair in images for image in pair], strict=True):
        code = source.removeprefix("data:image/png;base64,")
        with Image.open(io.BytesIO(base64.b64decode(code))) as image:
            np.testing.assert_array_equal(np.asarray(image), expected.squeeze())


def test_signals_are_lines_that_fill_their_box(tmp_path, no_figures):
    rng = np.random.default_rng(0)
    signals = [
        rng.normal(size=(2, *shape)).astype(np.float32) for shape in [(40,), (40, 1), (1, 40)]
    ]
    signals.append(np.full((2, 40), 3.0))
    signals.append(rng.integers(0, 256, (2, 40)).astype(np.uint8))
    lines = [
        np.array([pair.split(",") for pair in line.get("points").split()], float)
        for line in cards_of(tmp_path, signals).all("polyline")
    ]
    for line, signal in zip(lines, [x.ravel() for pair in signals for x in pair], strict=True):
        np.testing.assert_allclose(line[:, 0], np.linspace(2, 98, 40), atol=0.051)
        spread = float(signal.max()) - float(signal.min()) or 1.0
        expected = 58 - 56 * (signal - float(signal.min())) / spread
        np.testing.assert_allclose(line[:, 1], expected, atol=0.051)


def test_other_inputs_have_a_card_without_a_picture(tmp_path, no_figures):
    inputs = [
        np.ones((2, 8, 8), np.float32),
        np.full((2, 40), np.nan, np.float32),
        np.ones((2, 5000), np.float32),
        np.ones((2, 1)),
        np.ones(2),
        np.ones((2, 5, 4, 2), np.uint8),
        None,
    ]
    found = cards_of(tmp_path, inputs)
    assert len(found.cards) == 14 and not found.all("polyline") and not pictures_of(found)
    assert found.text.count("drawn 2000000000\N{MULTIPLICATION SIGN} loss 1.23 #7") == 7
    assert found.text.count("drawn 0\N{MULTIPLICATION SIGN} loss nan #3") == 7


def test_a_card_says_where_the_network_disagrees(whole):
    _, _, found = whole
    # None of uniform, the first seed of loss, the second example of by_text.
    assert found.cards == ["card", "card wrong"] + ["card wrong"] * 2
    titles = [title.text for title in found.all("h3")]
    assert titles == [
        f"{m}: drawn {kind}" for m in ("by_text", "loss") for kind in ("most", "least")
    ]
    assert any(element.get("class") == "cards wide" for element in found.all("div"))


def test_a_method_without_examples_has_no_gallery(tmp_path, no_figures):
    finish(tmp_path / "l", "loss")
    show(tmp_path / "l", ids=(), count=(), loss=())
    _, found = read(tmp_path)
    assert "drawn most" not in found.text and found.cards == []


@pytest.mark.slow
def test_runs_without_artifacts(folder):
    _, found = read(folder)
    assert "Not measured yet" in found.text and "No diagnostics yet." in found.text
    assert "No method here has scores that differ between examples." in found.text
    assert len(found.all("figure")) == 1 and "drawn most" not in found.text
    assert {path.name for path in (folder / "report").iterdir()} == {"index.html", "curves.png"}


@pytest.mark.slow
def test_figures_of_an_earlier_report_go_and_files_of_others_stay(folder):
    report = folder / "report"
    report.mkdir()
    for name in ("curves.png", "time.png", "draws.png", "mine.png", "time.txt"):
        (report / name).write_bytes(b"old")
    read(folder)
    left = {path.name for path in report.iterdir()}
    assert left == {"index.html", "curves.png", "mine.png", "time.txt"}
    assert (report / "curves.png").read_bytes() != b"old"


def test_a_run_whose_files_are_all_incomplete_or_missing(tmp_path):
    """One evaluation, before any step; a line and files half written; no uniform."""
    write_run(tmp_path, "loss", rows=[(0, 0.0, 2.0, 0.1)], tail='{"step": 10, "sec')
    (tmp_path / "training.jsonl").write_text('{"step": 10, "ess": 0.')
    for name in ("draws.npz", "examples.npz", "time.json"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 half")
    _, found = read(tmp_path)
    assert len(found.all("figure")) == 1 and "no uniform run to compare with" in found.text


@pytest.mark.slow
def test_scores_and_losses_that_are_not_finite(tmp_path):
    finish(tmp_path, "loss")
    nan = np.full(50, np.nan, np.float32)
    save(tmp_path / "draws.npz", count=np.arange(5), scores=nan, losses=nan, probs=np.ones(50))
    _, found = read(tmp_path)
    assert "No method here has scores that differ between examples." in found.text
    assert (tmp_path / "report/draws.png").exists() and len(found.all("figure")) == 4


@pytest.mark.slow
def test_twelve_methods(tmp_path):
    for i in range(12):
        finish(tmp_path / str(i), f"method{i:02}" if i else "uniform", seeds_end=0.4 + i / 100)
    _, found = read(tmp_path)
    assert len(set(found.ids)) == len(found.ids) and set(found.targets) <= set(found.ids)
    assert found.unthemed == [] and len(found.all("tr")) == 13
    assert len(found.cards) == 22
