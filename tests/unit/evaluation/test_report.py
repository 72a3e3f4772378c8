"""The report page: self-contained, complete, honest on an outage, and safe against what comes from the air."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from skimage import data

from multisc.errors import MultiscError
from multisc.evaluation import plots
from multisc.evaluation.differences import Piece, compare
from multisc.evaluation.report import write_report
from multisc.evaluation.result import ChannelInfo, ImageInfo, Result, StreamResult, TextInfo
from multisc.phy import modulation

SENT = [
    "a bright red and green parrot sits in front of dark leaves",
    "the head of a blue and yellow macaw with a white face",
    "green leaves and the breast of a red bird",
    "yellow feathers of a parrot before a blurred green background",
]
RECEIVED = [
    "a bright red and gravel parrot sits in front dark leaves",
    "the head of a blue and yellow macaw with a white face",
    "green train and the the breast of a street bird",
    "",
]
CORRECTED = [
    "a bright red and green parrot sits in front of dark leaves",
    "the head of a blue and yellow macaw with a white face",
    "green grass and the breast of a red bird",
    "",
]


def noise(count, deviation, seed):
    generator = np.random.default_rng(seed)
    return (generator.normal(0, deviation, count) + 1j * generator.normal(0, deviation, count)).astype(np.complex64)


def symbols(name, count, snr_db, seed=0):
    bits = np.random.default_rng(seed).integers(0, 2, count * modulation.bits_per_symbol(name), dtype=np.uint8)
    deviation = np.sqrt(0.5 * 10 ** (-snr_db / 10))
    return (modulation.map_bits(bits, name) + noise(count, deviation, seed + 1)).astype(np.complex64)


def example(source, outage_reason=None):
    """A result of Multi-SC at 6 dB with the arrays of a run, made up for the page."""
    height, width = source.shape[:2]
    names = ["slice", "text-tl", "text-tr", "text-bl", "text-br"]
    streams = [
        StreamResult("slice", "digital", "16qam", "none", 18432, True, 73728, 1610, 6.0, 6.02, 5.94),
        StreamResult("text-tl", "digital", "qpsk", "nr:1/2", 312, True, 312, 0, 6.0, 5.97, 6.08, crc_ok=True),
        StreamResult("text-tr", "digital", "qpsk", "nr:1/2", 288, True, 288, 3, 6.0, 6.04, 6.01, crc_ok=False),
        StreamResult("text-bl", "digital", "bpsk", "none", 480, True, 480, 9, 6.0, 6.11, 5.8),
        StreamResult("text-br", "analog", "analog", "none", 260, False, snr_db=6.0),
    ]
    metrics = {"psnr_db": 14.83, "ssim": 0.3412, "ms_ssim": 0.4127, "cosine": 0.5233, "lpips": None}
    text = {"bleu": 0.7412, "bleu_received": 0.5127, "bleu_corrected": 0.7412, "word_error_rate": 0.0811}
    reasons = {
        "lpips": "no weights: set MULTISC_LPIPS to the safetensors file that docs/reference/metrics.md describes"
    }
    if outage_reason:
        reasons = dict.fromkeys(metrics, f"outage: {outage_reason}")
        metrics = dict.fromkeys(metrics)
        streams = [replace(s, delivered=False, bit_errors=None, crc_ok=None) for s in streams]
    result = Result(
        system="multi-sc",
        models="embedded",
        image=ImageInfo("photographs/kodim23.png", width, height),
        channel=ChannelInfo("awgn", 1, 6.0, 6.02, 5.96, 2e6, 200.0, 198.7, {"phase": "random"}),
        streams=streams,
        channel_uses=sum(s.symbols for s in streams),
        channel_uses_total=26112,
        outage_reason=outage_reason,
        text=TextInfo() if outage_reason else TextInfo(SENT, RECEIVED, CORRECTED),
        metrics={**metrics, **text},
        metrics_reasons=reasons,
        options={"slice_size": 64, "steps": 20, "ip_scale": 1.0, "text_code": "nr:1/2"},
        receiver={"bursts_received": 12, "bursts_total": 12, "complete": True, "header_failures": 0},
        timings_s={"start": 4.12, "encode": 2.31, "transmit": 0.42, "receive": 0.61, "decode": 9.87, "measure": 0.38},
        files={"received": "received.png", "slice": "slice.png"},
    )
    small = np.asarray(Image.fromarray(source).resize((64, 43)))
    yy, xx = np.mgrid[:height, :width]
    box = (width // 8, height // 5, width // 3, height // 2)
    ellipse = ((xx - box[0] - box[2] / 2) / box[2]) ** 2 + ((yy - box[1] - box[3] / 2) / box[3]) ** 2 < 0.25
    pictures = {
        "source": source,
        "received": np.asarray(Image.fromarray(source).resize((24, 16)).resize((width, height))),
        "slice_sent": small,
        "slice_received": np.clip(small + np.random.default_rng(3).normal(0, 18, small.shape), 0, 255).astype(
            np.uint8
        ),
        "mask": np.where(ellipse, 255, 0).astype(np.uint8),
    }
    constellations = {
        s.name: noise(s.symbols, 0.7, 9) if s.kind == "analog" else symbols(s.modulation, s.symbols, 12.0)
        for s in streams
        if not outage_reason
    }
    assert list(names) == [s.name for s in streams]
    return {"result": result, "pictures": pictures, "constellations": constellations, "box": box, "label": "bird"}


class Page(HTMLParser):
    """Checks that tags are balanced and collects text, tags and attributes."""

    VOID = ("meta", "img", "br", "image", "path", "circle", "rect", "link", "input")

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, words):
        if self.open and self.open[-1] != "style":
            self.words.append(words)


def render(tmp_path, **changes):
    write_report(tmp_path / "report.html", **{**example(data.astronaut()), **changes})
    return Page(tmp_path / "report.html")


def test_page_is_self_contained(tmp_path):
    page = render(tmp_path)
    assert "script" not in page.tags
    assert "link" not in page.tags
    for _, name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith("data:image/")
        assert not name.startswith("on")
    outside = re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", page.source)
    assert not re.search(r"https?:|url\(|@import|//[a-z]", outside)
    assert len(page.source) < 2_000_000


def test_page_shows_every_part(tmp_path):
    page = render(tmp_path)
    for words in (
        "multi-sc",
        "over AWGN at 6 dB",
        "photographs/kodim23.png",
        "Source.",
        "Received.",
        "bird",
        "Subject slice",
    ):
        assert words in page.text
    for name in ("slice", "text-tl", "text-br", "16qam", "nr:1/2", "not delivered", "CRC right", "CRC wrong"):
        assert name in page.text
    for number in (
        "6.02 measured",
        "5.96 estimated",
        "14.8",
        "0.741",
        "0.513 before correction",
        "1 610",
        "9.87 s",
    ):
        assert number in page.text
    assert "no weights: set MULTISC_LPIPS" in page.text
    assert page.tags.count("img") == 1 + 2 + 4  # received picture, two slices, four blocks
    boxes = [value for tag, name, value in page.attributes if tag == "rect" and name == "x"]
    assert boxes == [str(data.astronaut().shape[1] // 8)] * 2


def test_differences_are_marked_by_more_than_colour(tmp_path):
    page = render(tmp_path)
    assert '<span class="changed" title="sent: green">gravel</span>' in page.source
    assert '<del title="sent, but missing here">of</del>' in page.source
    assert '<ins title="not sent">the</ins>' in page.source
    assert '<span class="repaired" title="arrived otherwise, put right">green</span>' in page.source
    assert "nothing received" in page.text
    assert "✕ 2 of 12 words" in page.text
    assert "✓ as sent" in page.text
    style = page.source.split("</style>")[0]
    for rule in (
        r"\.changed \{[^}]*wavy",
        r"del \{[^}]*line-through",
        r"ins \{[^}]*dotted",
        r"\.repaired \{[^}]*solid",
    ):
        assert re.search(rule, style)


def test_outage_says_so_and_shows_no_picture_from_the_receiver(tmp_path):
    reason = "no preamble was found in 1.2 s of samples"
    page = render(tmp_path, **example(data.astronaut(), reason))
    assert "Outage: there is no picture to show" in page.text
    assert reason in page.text
    assert "Picture rebuilt" not in page.text
    assert not any(name == "alt" and value == "Picture that the receiver shows" for _, name, value in page.attributes)


def test_only_numbers(tmp_path):
    page = render(tmp_path, pictures={}, constellations={}, box=None)
    assert "No picture" in page.text
    assert "img" not in page.tags


def test_result_of_a_receiver_that_knows_neither_source_nor_channel(tmp_path):
    streams = [StreamResult("feature", "analog", "analog", "none", 500, True, snr_estimated_db=9.2)]
    result = Result(
        *("deep-jscc", "embedded", ImageInfo(None, 64, 48), ChannelInfo("recording"), streams, 500, 900, None),
        *(TextInfo(), {"psnr_db": None}, {"psnr_db": "the source is not known"}),
    )
    picture = np.zeros((48, 64, 3), np.uint8)
    page = render(tmp_path, result=result, pictures={"received": picture}, constellations={}, box=None)
    assert "source not known to the receiver" in page.text
    assert "the source is not known" in page.text
    assert "None" not in page.text


def test_previews_of_other_systems(tmp_path):
    pictures = {"source": data.astronaut(), "feature_map": np.zeros((16, 16), np.uint8), "qr": data.coffee()}
    page = render(tmp_path, pictures=pictures, captions={"from_feature": ["a woman in orange"], "empty": []})
    assert "Feature map." in page.text
    assert "From feature a woman in orange" in page.text
    assert "Empty" not in page.text


HOSTILE = "<script>alert(1)</script>\"'&\x00\u202e<img src=x onerror=y>"


def test_hostile_strings_are_text(tmp_path):
    arguments = example(data.astronaut())
    streams = [StreamResult(HOSTILE, "digital", "qpsk", HOSTILE, 4, True, 8, 0)]
    hostile = replace(
        arguments["result"],
        system=HOSTILE,
        models=HOSTILE,
        image=ImageInfo("\udcff" + HOSTILE, 512, 512),
        streams=streams,
        outage_reason=HOSTILE,
        text=TextInfo([HOSTILE], [HOSTILE * 2], [""]),
        receiver={HOSTILE: HOSTILE},
        options={HOSTILE: HOSTILE},
        timings_s={HOSTILE: 1.0},
        metrics={HOSTILE: None},
        metrics_reasons={HOSTILE: HOSTILE},
    )
    pictures = {**arguments["pictures"], HOSTILE: data.coffee()}
    page = render(
        *(tmp_path,),
        result=hostile,
        pictures=pictures,
        constellations={HOSTILE: symbols("qpsk", 4, 10.0)},
        captions={HOSTILE: [HOSTILE]},
        label=HOSTILE,
    )
    assert "script" not in page.tags
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert "\x00" not in page.source
    assert "\u202e" not in page.source


def test_endless_caption_is_cut(tmp_path):
    result = replace(example(data.astronaut())["result"], text=TextInfo(["a dog"], ["word " * 100_000], ["a dog"]))
    page = render(tmp_path, result=result)
    assert len(page.text) < 20_000


def test_missing_directory(tmp_path):
    with pytest.raises(MultiscError, match="cannot be written"):
        write_report(tmp_path / "none" / "report.html", **example(data.astronaut()))


def test_equal_input_gives_an_equal_page(tmp_path):
    assert render(tmp_path).source == render(tmp_path).source


@pytest.mark.parametrize(
    ("sent", "text", "before", "wanted"),
    [
        ("a b c", "a b c", None, [Piece("same", "a b c")]),
        ("a b c", "A b C", None, [Piece("same", "A b C")]),
        ("a b c", "a x c", None, [Piece("same", "a"), Piece("changed", "x", "b"), Piece("same", "c")]),
        ("a b c", "a c", None, [Piece("same", "a"), Piece("missing", "b"), Piece("same", "c")]),
        ("a c", "a b c", None, [Piece("same", "a"), Piece("added", "b"), Piece("same", "c")]),
        ("a b c", "a b c", "a x c", [Piece("same", "a"), Piece("repaired", "b"), Piece("same", "c")]),
        ("a b c d", "a b c x", "a y z d", [Piece("same", "a"), Piece("repaired", "b c"), Piece("changed", "x", "d")]),
        ("a b", "", None, [Piece("missing", "a b")]),
        ("", "a b", None, [Piece("added", "a b")]),
        ("", "", None, []),
    ],
)
def test_compare(sent, text, before, wanted):
    assert compare(sent, text, before) == wanted


@pytest.mark.parametrize("name", [*modulation.BITS_PER_SYMBOL, "analog"])
def test_constellation_contains_its_ideal_points_and_its_symbols(name):
    received = noise(500, 0.7, 4) if name == "analog" else symbols(name, 500, 15.0)
    plot = plots.constellation(received, name)
    assert plot.count == 500
    assert plot.beyond < 0.03 * 500
    assert len(plot.ideal) == (0 if name == "analog" else 1 << modulation.bits_per_symbol(name))
    assert all(abs(x) < plot.extent and abs(y) < plot.extent for x, y in plot.ideal)


def test_constellation_is_the_right_way_up():
    plot = plots.constellation(np.full(50, 0.9 + 0.2j, np.complex64), "analog")
    image = decoded(plot.uri)
    row, column = np.unravel_index(image[:, :, 3].argmax(), image.shape[:2])
    half = image.shape[0] / 2
    assert column > half  # positive real part: right
    assert row < half  # positive imaginary part: above


def decoded(uri):
    import base64
    import io

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


@pytest.mark.parametrize("values", [[], [np.nan, np.inf], [0, 0, 1e30], [1 + 1j] * 3])
def test_constellation_of_strange_symbols(values):
    plot = plots.constellation(np.array(values, np.complex64), "qpsk")
    assert plot.count == np.isfinite(values).sum()
    assert 0 < plot.extent <= 8.0
    assert decoded(plot.uri).shape == (160, 160, 4)


def test_small_pictures_are_shown_exactly():
    image = np.random.default_rng(0).integers(0, 256, (64, 50, 3), dtype=np.uint8)
    assert np.array_equal(decoded(plots.picture_uri(image)), image)
    assert decoded(plots.picture_uri(np.zeros((3000, 1500, 3), np.uint8))).shape == (1200, 600, 3)
