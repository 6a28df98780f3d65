import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from helpers import rows, write_run
from PIL import Image

from isjax.data.dataset import save
from isjax.reporting import page
from isjax.reporting.page import write_page
from isjax.reporting.runs import load_runs
from isjax.reporting.timeline import PARTS

VOID = {"meta", "br", "img"}
EVIL = ("cat", '<script>alert("1")</script>', "a & b's </pre>")


class Reader(html.parser.HTMLParser):
    """Tags must match; notes what there is, and what is drawn in which colour."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.targets, self.links = [], set(), [], [], []
        self.text, self.cards, self.plain = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        inside = [*self.open, (tag, dict(attrs))]
        for name, value in attrs:
            value = value or ""
            self.targets += re.findall(r"url\(#([^)]+)\)", value)
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                (self.targets if value.startswith("#") else self.links).append(value.lstrip("#"))
            if name == "class" and value.split()[0] == "card":
                self.cards.append(value)
        drawn = tag == "use" or (tag == "path" and all(t != "defs" for t, _ in inside))
        styles = " ".join(a.get("style") or "" for _, a in inside)
        if drawn and not re.search(r"(fill|stroke): var\(|fill: none", styles):
            self.plain.append(self.get_starttag_text())  # in black, which no theme changes

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, f"</{tag}> in line {self.getpos()[0]}"

    def handle_data(self, data):
        if not any(tag == "style" for tag, _ in self.open):
            self.text.append(data)

    @property
    def said(self):
        return " ".join(" ".join(self.text).split())


def finish(folder, method, seed=0, x=None, seeds_end=0.4, **examples):
    """A finished run with all that is put by for the report."""
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
    shares = dict.fromkeys(PARTS, 1 / len(PARTS))
    (folder / "time.json").write_text(json.dumps({"step": 10, "shares": shares}))
    show(folder, **{"label": ["a", "b"], "prediction": ["a", "a"], "x": x, **examples})


def show(folder, ids=(7, 3), count=(2_000_000_000, 0), loss=(1.23456, np.nan), **more):
    given = {name: np.asarray(values) for name, values in more.items() if values is not None}
    arrays = {"ids": np.array(ids, int), "count": np.array(count, np.int32)}
    save(folder / "examples.npz", **arrays, loss=np.array(loss, np.float32), **given)


def read(folder, output=None):
    path = write_page(load_runs([folder]), output or folder / "report")
    text = path.read_text(encoding="utf-8")
    return text, Reader(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three methods, two seeds of one; names and texts that are HTML."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder / "u", "uniform")
    for seed in (0, 1):
        finish(folder / f"l{seed}", "loss", seed, label=EVIL[:2], prediction=EVIL[1:])
    finish(folder / "t", "by_text", text=["to <b>be</b> & not", "x" * 500])
    return folder, *read(folder)


def test_the_page_is_whole_html_with_each_id_once_and_each_target_there(whole):
    _, _, found = whole
    assert len(found.ids) == len(set(found.ids)) > 100 and len(found.targets) > 100
    assert set(found.targets) <= set(found.ids)
    assert {"html", "head", "body", "h1", "table", "figure", "svg", "footer"} <= found.tags


def test_the_page_needs_no_other_file_and_names_none(whole):
    folder, text, found = whole
    assert all(link.startswith("data:image/png;base64,") for link in found.links)
    assert not {"script", "link", "iframe", "object"} & found.tags
    assert "@import" not in text and set(re.findall(r"url\((.)", text)) == {"#"}
    assert "://" not in re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    assert str(folder) not in text and "index.html" not in text and ".png" not in text


def test_a_path_is_named_in_a_note_alone(tmp_path):
    write_run(tmp_path / "u<b>", rows=rows([2.0, 1.0], [0.1, 0.5], 1.0))
    text, found = read(tmp_path)
    assert text.count(str(tmp_path)) == 1
    assert f"Note: {tmp_path / 'u<b>'} is at step 10 of 20." in found.said


def test_the_figures_lie_beside_it_as_png(whole):
    folder, text, _ = whole
    names = {"curves", "time", "behaviour", "draws", "predictions"}
    written = {path.name for path in (folder / "report").iterdir()}
    assert written == {"index.html", *(f"{name}.png" for name in names)}
    for name in names:
        with Image.open(folder / f"report/{name}.png") as image:
            assert image.width > 1000 and image.getpixel((1, 1))[:3] == (255, 255, 255)
    assert text.count("<figure>") == 5


def test_all_that_is_drawn_is_in_the_colours_of_the_themes(whole):
    _, text, found = whole
    assert found.plain == []
    pictures = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    pictures = re.sub(r'"data:image/png;base64,[^"]*"', "", pictures)
    used = set(re.findall(r"(?:fill|stroke|color): ?([^;\"]+)", pictures))
    assert used - {"none"} == {f"var({name})" for name in re.findall(r"var\((--\w+)\)", pictures)}
    # A colour elsewhere than in a style would not be one: attributes know no var().
    assert not re.findall(r'(?<!style)="[^"]*var\(', re.sub(r'style="[^"]*"', "", pictures))
    light, dark = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    for theme in (light, dark):
        assert {use[4:-1] for use in used - {"none"}} <= set(re.findall(r"(--\w+):", theme))
        assert set(page._THEMED.values()) <= set(re.findall(r"(--\w+):", theme))


def test_the_page_is_the_same_at_every_call(whole, tmp_path):
    folder, text, _ = whole
    again, _ = read(folder, tmp_path / "made/anew")
    assert again == text
    for path in (folder / "report").glob("*.png"):
        assert path.read_bytes() == (tmp_path / "made/anew" / path.name).read_bytes()


def test_names_and_texts_are_no_html(whole):
    _, text, found = whole
    assert "<script" not in text and "<b>" not in text
    for said in (EVIL[1], f"→ {EVIL[2]}", "to <b>be</b> & not"):
        assert said in found.said
    assert "x" * 140 + "…" in found.said and "x" * 141 not in found.said


def test_names_of_data_sets_and_methods_are_no_html(tmp_path):
    names = ["<i>loss</i> & --> more", "a_b^c", "größer"]
    for i, name in enumerate(names):
        end = rows([2.0, 1.0, 0.5], [0.1, 0.5, 0.6], 1)
        write_run(tmp_path / str(i), name, rows=end, dataset=names[0])
    text, found = read(tmp_path)
    assert "<i>" not in text and f"{names[0]}: what to train on next" in found.said
    assert f"3 runs of {', '.join(sorted(names))}." in found.said


def test_what_each_method_comes_to_is_said_when_all_is_done(tmp_path):
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
    ends = "uniform's final train loss"
    for verdict in (
        f"quick reaches {ends} in 0.30 of the time that uniform takes; its final test accuracy is",
        f"half reaches {ends} in 0.50 of the time that uniform takes (1 of 2 seeds); its final",
        f"slow never reaches {ends}; its final test accuracy is 0.25, uniform's 0.7.",
        f"even ends at {ends}, 0.4; its final test accuracy is 0.7, uniform's 0.7.",
        "stopped diverged: its final train loss is not finite; its final test accuracy is 0.1,",
        "wild diverged: its final train loss is not finite (1 of 2 seeds); its final test accuracy",
    ):
        assert verdict in found.said
    assert "going reaches" not in found.said and "going never" not in found.said
    write_run(tmp_path / "u", "uniform", 0, rows([2.0, 1.0], [0.1, 0.5], 1.0))  # still going
    assert "reaches" not in read(tmp_path)[1].said
    write_run(tmp_path / "u", "uniform", 0, rows([2.0, 1.0, np.nan], [0.1, 0.5, 0.1], 1.0))
    assert "slow ends at a train loss of 0.9, where uniform diverged;" in read(tmp_path)[1].said


def test_the_methods_of_isjax_are_told_in_a_line_each(tmp_path):
    for method in ("uniform", "learned_loss", "my_own"):
        write_run(tmp_path / method, method, 0, rows([2.0, 1.0], [0.1, 0.5], 1.0))
    text, _ = read(tmp_path)
    told = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text)
    assert dict(told).keys() == {"uniform", "learned_loss"}
    assert dict(told)["learned_loss"].startswith("An LSTM predicts the loss from past losses")


def test_three_seeds_have_an_interval_after_the_final_values(tmp_path):
    for seed, end in enumerate((0.1, 0.2, 0.3)):  # 4.303 deviations of the mean to either side
        write_run(tmp_path / str(seed), "loss", seed, rows([2.0, 1.0, end], [0.1, 0.5, 0.7], 1))
    write_run(tmp_path / "u", "uniform", 0, rows([2.0, 1.0, 0.4], [0.1, 0.5, 0.7], 1))
    text, _ = read(tmp_path)
    heading, uniform, loss = (
        re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)
    )
    assert [i for i, name in enumerate(heading) if name.startswith("95%")] == [5, 7]
    assert loss[4:8] == ["0.200 ± 0.100", "-0.04841 to 0.4484", "0.7000 ± 0.0000", "0.7 to 0.7"]
    assert uniform[4:8] == ["0.400", "", "0.7000", ""] and len(loss) == len(heading) == 12


def cards_of(folder, inputs):
    """The page of a method for each input, which put by nothing but two examples."""
    for i, x in enumerate(inputs):
        write_run(folder / str(i), f"m{i}", rows=rows([2.0, 1.0, 0.4], [0.1, 0.5, 0.7], 1.0))
        show(folder / str(i), x=x)
    return read(folder)


def test_images_are_shown_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    shapes = [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4)]
    images = [rng.integers(0, 256, (2, *shape)).astype(np.uint8) for shape in shapes]
    text, _ = cards_of(tmp_path, images)
    shown = re.findall(r'<img alt="example \d" src="data:image/png;base64,([^"]*)"', text)
    for code, expected in zip(shown, [image for pair in images for image in pair], strict=True):
        with Image.open(io.BytesIO(base64.b64decode(code))) as image:
            np.testing.assert_array_equal(np.asarray(image), expected.squeeze())


def test_signals_are_lines_that_fill_their_box(tmp_path):
    rng = np.random.default_rng(0)
    signals = [
        rng.normal(size=(2, *shape)).astype(np.float32) for shape in [(40,), (40, 1), (1, 40)]
    ]
    signals.append(np.full((2, 40), 3.0))
    signals.append(rng.integers(0, 256, (2, 40)).astype(np.uint8))
    text, _ = cards_of(tmp_path, signals)
    lines = [
        np.array([pair.split(",") for pair in points.split()], float)
        for points in re.findall(r'<polyline points="([^"]*)"', text)
    ]
    for line, signal in zip(lines, [x.ravel() for pair in signals for x in pair], strict=True):
        np.testing.assert_allclose(line[:, 0], np.linspace(2, 98, 40), atol=0.051)
        spread = float(signal.max()) - float(signal.min()) or 1.0
        expected = 58 - 56 * (signal - float(signal.min())) / spread
        np.testing.assert_allclose(line[:, 1], expected, atol=0.051)


def test_of_what_is_neither_there_is_a_card_without_a_picture(tmp_path):
    inputs = [
        np.ones((2, 8, 8), np.float32),
        np.full((2, 40), np.nan, np.float32),
        np.ones((2, 5000), np.float32),
        np.ones((2, 1)),
        np.ones(2),
        np.ones((2, 5, 4, 2), np.uint8),
        None,
    ]
    text, found = cards_of(tmp_path, inputs)
    assert len(found.cards) == 14 and "<polyline" not in text and 'alt="example' not in text
    assert found.said.count("drawn 2000000000\N{MULTIPLICATION SIGN} loss 1.23 #7") == 7
    assert found.said.count("drawn 0\N{MULTIPLICATION SIGN} loss nan #3") == 7


def test_a_card_says_where_the_network_disagrees(whole):
    _, text, found = whole
    # Of uniform none, of loss its first seed, of by_text the second example.
    assert found.cards == ["card", "card wrong"] + ["card wrong"] * 2
    assert re.findall(r"<h3>(.*): drawn most", text) == ["by_text", "loss"]
    assert '<div class="cards wide">' in text


def test_of_a_method_without_examples_there_is_no_gallery(tmp_path):
    finish(tmp_path / "l", "loss")
    show(tmp_path / "l", ids=(), count=(), loss=())
    _, found = read(tmp_path)
    assert "What was drawn most" not in found.said and found.cards == []


def test_runs_that_put_nothing_by(folder):
    text, found = read(folder)
    assert "Not measured yet" in found.said and "Nothing to show yet." in found.said
    assert "No method here draws by scores that differ." in found.said
    assert text.count("<figure>") == 1 and "What was drawn most" not in text
    assert {path.name for path in (folder / "report").iterdir()} == {"index.html", "curves.png"}


def test_figures_of_an_earlier_report_go_and_files_of_others_stay(folder):
    report = folder / "report"
    report.mkdir()
    for name in ("curves.png", "time.png", "draws.png", "mine.png", "time.txt"):
        (report / name).write_bytes(b"old")
    read(folder)
    left = {path.name for path in report.iterdir()}
    assert left == {"index.html", "curves.png", "mine.png", "time.txt"}
    assert (report / "curves.png").read_bytes() != b"old"


def test_a_run_of_which_everything_is_torn_or_not_there_yet(tmp_path):
    """One evaluation, before any step; a line and files half written; no uniform."""
    write_run(tmp_path, "loss", rows=[(0, 0.0, 2.0, 0.1)], tail='{"step": 10, "sec')
    (tmp_path / "training.jsonl").write_text('{"step": 10, "ess": 0.')
    for name in ("draws.npz", "examples.npz", "time.json"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 half")
    text, found = read(tmp_path)
    assert text.count("<figure>") == 1 and "no uniform run to compare with" in found.said


def test_scores_and_losses_that_are_not_finite(tmp_path):
    finish(tmp_path, "loss")
    nan = np.full(50, np.nan, np.float32)
    save(tmp_path / "draws.npz", count=np.arange(5), scores=nan, losses=nan, probs=np.ones(50))
    text, found = read(tmp_path)
    assert "No method here draws by scores that differ." in found.said
    assert (tmp_path / "report/draws.png").exists() and text.count("<figure>") == 4


def test_twelve_methods(tmp_path):
    for i in range(12):
        finish(tmp_path / str(i), f"method{i:02}" if i else "uniform", seeds_end=0.4 + i / 100)
    text, found = read(tmp_path)
    assert len(set(found.ids)) == len(found.ids) and set(found.targets) <= set(found.ids)
    assert found.plain == [] and len(re.findall("<tr>", text)) == 13
    assert len(found.cards) == 22
