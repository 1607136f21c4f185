"""The demo shows what attention does, and every number it shows comes out of the exported file."""

import io
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from rich.console import Console

import onnx_attn
from onnx_attn import InputError, OnnxAttnError
from onnx_attn.demo.matching import Match, clear_matches, matches
from onnx_attn.demo.matching import sentence_similarity as similarity_of
from onnx_attn.demo.sample import load_sample
from onnx_attn.demo.show import SCALE, run_demo
from onnx_attn.plot import save_heatmap

SAMPLE = Path(onnx_attn.__file__).parent / "data" / "text_similarity.npz"
FILES = [
    "text_similarity.onnx",
    "text_similarity_pair.npz",
    "text_similarity_pair.png",
    "text_similarity_batch.npz",
    "text_similarity_batch.png",
]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(directory, printed lines) of one run on a terminal of 80 columns without colour."""
    directory = tmp_path_factory.mktemp("demo") / "made" / "by the demo"
    return directory, printed(directory)


def printed(directory):
    console = Console(width=80, file=io.StringIO(), no_color=True)
    run_demo(directory, console)
    return console.file.getvalue().splitlines()


def flowing(lines):
    """The printed text without its line breaks."""
    return " ".join(line.strip() for line in lines)


def archive(path):
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def attention(query, value, query_mask, value_mask):
    """The formula, in float64: softmax(scale * query @ value^T) over the words that are real."""
    query, value = query.astype(np.float64), value.astype(np.float64)
    products = SCALE * np.einsum("bqd,bvd->bqv", query, value)
    powers = np.exp(products) * value_mask[:, None, :]
    scores = powers / powers.sum(axis=-1, keepdims=True)
    return np.einsum("bqv,bvd->bqd", scores, value) * query_mask[:, :, None], scores


class TestSample:
    def test_is_small_and_plain(self):
        assert SAMPLE.stat().st_size < 200_000
        arrays = archive(SAMPLE)
        assert all(array.dtype.kind in "Uif" for array in arrays.values())
        assert arrays["embeddings"].dtype == np.float32

    def test_tokens_spell_the_sentences(self):
        sample = load_sample()
        sides = [
            (sample.query_text, sample.query_tokens, sample.query_mask),
            (sample.value_text, sample.value_tokens, sample.value_mask),
        ]
        for texts, tokens, masks in sides:
            for text, pieces, mask in zip(texts, tokens, masks, strict=True):
                real = pieces[: mask.sum()]
                assert " ".join(real).replace(" ##", "") == text
                assert pieces[len(real) :] == ["[PAD]"] * (len(pieces) - len(real))
                assert not mask[len(real) :].any()
        every = {piece for side in sides for pieces in side[1] for piece in pieces}
        assert {"puppy", "dog", "slept", "sleeping", "sofa", "couch", "[PAD]"} <= every
        assert not {"[CLS]", "[SEP]", "[UNK]"} & every

    def test_embeddings_are_one_trained_row_a_token(self):
        arrays = archive(SAMPLE)
        embeddings, tokens = arrays["embeddings"], arrays["tokens"]
        assert embeddings.shape == (len(tokens), 384)
        assert len(np.unique(tokens)) == len(np.unique(embeddings, axis=0)) == len(tokens)
        norms = np.linalg.norm(embeddings, axis=1)
        assert ((norms > 0.5) & (norms < 1.5)).all()
        used = np.union1d(arrays["query_ids"], arrays["value_ids"])
        assert used.tolist() == list(range(len(tokens)))

    def test_needs_padding_on_both_sides(self):
        sample = load_sample()
        lengths = list(zip(sample.query_mask.sum(1), sample.value_mask.sum(1), strict=True))
        assert len(lengths) >= 4
        assert {int(np.sign(tq - tv)) for tq, tv in lengths} == {-1, 0, 1}
        both = ~sample.query_mask.all(1) & ~sample.value_mask.all(1)
        assert both.any()
        # Zeros in padded places would make the claims about masks empty.
        assert np.abs(sample.query[~sample.query_mask]).max() > 0.01
        assert np.abs(sample.value[~sample.value_mask]).max() > 0.01

    def test_says_where_it_comes_from(self):
        about = load_sample().about
        assert about["embeddings_licence"] == "Apache-2.0"
        assert "all-MiniLM-L6-v2" in about["embeddings"]
        notice = (Path(__file__).parents[2] / "NOTICE").read_text()
        assert "all-MiniLM-L6-v2" in notice
        assert all(digest in notice for digest in about["sha256"].values())


class TestFiles:
    def test_are_the_ones_named(self, demo):
        directory, lines = demo
        assert sorted(path.name for path in directory.iterdir()) == sorted(FILES)
        place = lines.index(f"Wrote, in {directory.resolve()}:")
        assert [line.split()[0] for line in lines[place + 1 :]] == FILES

    def test_pictures_are_png(self, demo):
        for name in FILES:
            if name.endswith(".png"):
                content = (demo[0] / name).read_bytes()
                assert content[:8] == PNG_SIGNATURE
                assert len(content) > 10_000

    def test_a_second_run_replaces_them(self, tmp_path):
        printed(tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.glob("*.onnx")}
        printed(tmp_path)
        assert {name: (tmp_path / name).read_bytes() for name in before} == before
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


class TestNumbers:
    @pytest.mark.parametrize("name", ["pair", "batch"])
    def test_are_the_formula(self, demo, name):
        got = archive(demo[0] / f"text_similarity_{name}.npz")
        query, value = got["query"], got["value"]
        query_mask = got.get("query_mask", np.ones(query.shape[:2], bool))
        value_mask = got.get("value_mask", np.ones(value.shape[:2], bool))
        output, scores = attention(query, value, query_mask, value_mask)
        np.testing.assert_allclose(got["output"], output, rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(got["attention_scores"], scores, rtol=1e-5, atol=2e-6)

    def test_are_the_files_own_in_plain_onnxruntime(self, demo):
        got = archive(demo[0] / "text_similarity_batch.npz")
        session = onnxruntime.InferenceSession(
            demo[0] / "text_similarity.onnx", providers=["CPUExecutionProvider"]
        )
        feeds = {name: got[name] for name in ("query", "value", "query_mask", "value_mask")}
        output, scores = session.run(["output", "attention_scores"], feeds | {"key": got["value"]})
        np.testing.assert_allclose(output, got["output"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(scores, got["attention_scores"], rtol=1e-6, atol=1e-6)

    def test_of_the_archives_are_the_samples(self, demo):
        sample = load_sample()
        got = archive(demo[0] / "text_similarity_batch.npz")
        for name in ("query", "value", "query_mask", "value_mask"):
            np.testing.assert_array_equal(got[name], getattr(sample, name))
        assert got["query_tokens"].tolist() == sample.query_tokens
        assert got["value_tokens"].tolist() == sample.value_tokens


class TestMasks:
    def test_padding_gets_exactly_nothing(self, demo):
        got = archive(demo[0] / "text_similarity_batch.npz")
        scores, output = got["attention_scores"], got["output"]
        padded = np.broadcast_to(~got["value_mask"][:, None, :], scores.shape)
        assert padded.any()
        assert (scores[padded] == 0).all()
        assert not got["query_mask"].all()
        assert (output[~got["query_mask"]] == 0).all()
        np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-6)
        # The scores of padded queries are not touched: they are zeroed in the output only.
        assert (scores[~got["query_mask"]].max(-1) > 0.1).all()

    def test_the_claims_are_printed(self, demo):
        got = archive(demo[0] / "text_similarity_batch.npz")
        text = flowing(demo[1])
        assert "value_mask: the largest weight on padding is exactly 0;" in text
        assert "query_mask: the largest output of a padded query row is exactly 0;" in text
        everything = np.ones_like(got["query_mask"]), np.ones_like(got["value_mask"])
        _, unmasked = attention(got["query"], got["value"], *everything)
        drawn = (unmasked * ~got["value_mask"][:, None, :]).sum(-1)[got["query_mask"]].max()
        assert drawn > 0.2
        assert f"padding would draw up to {drawn:.2f} of a word's attention" in text


class TestWhatIsShown:
    def test_fits_40_lines_of_80_columns(self, demo):
        directory, lines = demo
        assert len(lines) <= 40
        assert max(len(line) for line in lines if str(directory) not in line) <= 80
        assert not any("…" in line for line in lines)

    def test_heatmap_holds_every_weight(self, demo):
        directory, lines = demo
        got = archive(directory / "text_similarity_pair.npz")
        (words,), (seen,) = got["query_tokens"].tolist(), got["value_tokens"].tolist()
        top = next(i for i, line in enumerate(lines) if line.split() == [*seen, "looks", "at"])
        for line, word, row in zip(
            lines[top + 1 :], words, got["attention_scores"][0], strict=False
        ):
            weights = [f"{weight:.2f}" for weight in row]
            assert line.split() == [word, *weights, seen[row.argmax()]]

    def test_words_find_each_other(self, demo):
        got = archive(demo[0] / "text_similarity_pair.npz")
        text = flowing(demo[1])
        (words,), (seen,) = got["query_tokens"].tolist(), got["value_tokens"].tolist()
        scores = got["attention_scores"][0]
        for word, other in [("puppy", "dog"), ("slept", "sleeping"), ("sofa", "couch")]:
            weight = scores[words.index(word), seen.index(other)]
            assert weight == scores[words.index(word)].max()
            assert weight > 0.8
            assert f'"{word}" looks at "{other}" ({weight:.2f})' in text

    def test_similarity_is_the_mean_cosine(self, demo):
        directory, lines = demo
        got = archive(directory / "text_similarity_batch.npz")
        expected = []
        for query, output, mask in zip(
            got["query"].astype(float), got["output"].astype(float), got["query_mask"], strict=True
        ):
            cosines = [
                q @ o / np.sqrt((q @ q) * (o @ o))
                for q, o, real in zip(query, output, mask, strict=True)
                if real
            ]
            expected.append(np.mean(cosines))
        np.testing.assert_allclose(got["similarity"], expected, rtol=1e-9)
        shown = {
            text: f"{value:.2f}"
            for text, value in zip(load_sample().query_text, expected, strict=True)
        }
        for text, value in shown.items():
            assert any(line.startswith(f"  {value}  {text} / ") for line in lines), text
        # The pair with nothing in common comes last, by far.
        assert expected.index(min(expected)) == len(expected) - 1
        assert sorted(expected)[1] - min(expected) > 0.2


class TestMatches:
    SCORES = np.array([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25], [0.1, 0.9, 0.0], [0.0, 0.4, 0.6]])

    def test_take_the_largest_weight(self):
        found = matches(self.SCORES, ["a", "b", "c", "d"], ["x", "y", "z"])
        assert found == [
            Match("a", "x", 0.7),
            Match("b", "x", 0.5),
            Match("c", "y", 0.9),
            Match("d", "z", 0.6),
        ]

    def test_are_clear_above_a_half_between_different_words(self):
        found = matches(self.SCORES, ["a", "b", "y", "##d"], ["x", "y", "z"])
        assert clear_matches(found) == [Match("a", "x", 0.7)]

    def test_are_named_once_and_sorted(self):
        found = [Match("a", "x", 0.6), Match("b", "y", 0.9), Match("a", "x", 0.6)]
        assert clear_matches(found) == [Match("b", "y", 0.9), Match("a", "x", 0.6)]


class TestSimilarity:
    def test_is_one_for_words_that_found_themselves(self):
        words = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
        mask = np.array([[True, True, False], [True, True, True]])
        np.testing.assert_allclose(similarity_of(words, words * mask[..., None], mask), 1)
        np.testing.assert_allclose(similarity_of(words, -words, mask), -1)


class TestBadInput:
    def test_directory_is_a_file(self, tmp_path):
        path = tmp_path / "taken"
        path.write_text("")
        with pytest.raises(OnnxAttnError, match=r"taken: expected a directory.*Fix:"):
            printed(path)

    @pytest.mark.parametrize("shape", [(3,), (1, 2, 3), (0, 4)])
    def test_scores_of_another_shape(self, tmp_path, shape):
        with pytest.raises(InputError, match=r"scores: expected .*\[Tq, Tv\].*received"):
            save_heatmap(np.zeros(shape), tmp_path / "x.png")

    @pytest.mark.parametrize("name", ["query_mask", "value_mask"])
    def test_masks_of_another_length(self, tmp_path, name):
        with pytest.raises(InputError, match=rf"{name}: expected 2 .*received 3"):
            save_heatmap(np.zeros((2, 2)), tmp_path / "x.png", **{name: np.ones(3, bool)})

    @pytest.mark.parametrize("name", ["query_labels", "value_labels"])
    def test_labels_of_another_length(self, tmp_path, name):
        with pytest.raises(InputError, match=rf"{name}: expected 2 .*received 3"):
            save_heatmap(np.zeros((2, 2)), tmp_path / "x.png", **{name: ["a", "b", "c"]})

    @pytest.mark.parametrize("name", ["heat.bmpx", "heat"])
    def test_unknown_picture_format(self, tmp_path, name):
        with pytest.raises(InputError, match=r"picture format.*\.png"):
            save_heatmap(np.zeros((2, 2)), tmp_path / name)
        assert not list(tmp_path.iterdir())

    def test_picture_in_a_missing_directory(self, tmp_path):
        with pytest.raises(OnnxAttnError, match=r"heat\.png cannot be written"):
            save_heatmap(np.zeros((2, 2)), tmp_path / "missing" / "heat.png")


class TestPlot:
    def test_labels_and_numbers_are_in_the_picture(self, tmp_path):
        # matplotlib writes the drawn strings as comments beside their outlines.
        scores = np.array([[0.25, 0.75], [1.0, 0.0]], np.float16)
        path = save_heatmap(
            scores,
            tmp_path / "heat.svg",
            query_labels=["puppy", "[PAD]"],
            value_labels=["dog", "couch"],
            title="a title",
        )
        drawn = set(re.findall(r"<!-- (.*?) -->", path.read_text()))
        assert {"puppy", "[PAD]", "dog", "couch", "a title", "0.25", "0.75", "1.00", "0"} <= drawn

    def test_hidden_words_are_striped(self, tmp_path):
        scores = np.full((3, 2), 0.5)
        plain = save_heatmap(scores, tmp_path / "plain.svg").read_text()
        assert "pattern id" not in plain
        assert "output 0" not in plain
        masked = save_heatmap(
            scores,
            tmp_path / "masked.svg",
            query_mask=np.array([True, False, False]),
            value_mask=np.array([False, True]),
        ).read_text()
        assert masked.count("<!-- output 0 -->") == 2
        assert masked.count("fill: url(#") == 3

    def test_many_positions_are_drawn_without_numbers(self, tmp_path):
        scores = np.full((300, 200), 1 / 200)
        path = save_heatmap(scores, tmp_path / "heat.svg", query_labels=["word"] * 300)
        drawn = set(re.findall(r"<!-- (.*?) -->", path.read_text()))
        assert not {"word", "0.01"} & drawn

    def test_without_matplotlib(self, tmp_path, monkeypatch):
        for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(OnnxAttnError, match=r"matplotlib.*pip install 'onnx_attn\[plot\]'"):
            save_heatmap(np.zeros((2, 2)), tmp_path / "heat.png")
        text = flowing(printed(tmp_path))
        assert "For the heatmaps as pictures: pip install 'onnx_attn[plot]'" in text
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            name for name in FILES if not name.endswith(".png")
        )
