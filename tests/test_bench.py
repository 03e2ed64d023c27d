"""The figures: statistics on planted data, the arithmetic of a bench, and a small bench from end to end."""

import json
import mmap

import numpy as np
import pytest
import torch

import tts_compile as tc
from tts_compile.bench import models, t3
from tts_compile.bench.result import as_json
from tts_compile.measuring import machine
from tts_compile.measuring.stats import Median, Ratio, difference_of_medians, median_of, ratio_of_medians
from tts_compile.parity.metrics import lowest_db
from tts_compile.timing import peak_memory as peak
from tts_compile.utils.tables import markdown_table


def planted(seed, slowdown, repeats=5):
    """Returns rates of two sides with 3% of noise, the second ``slowdown`` times slower."""
    noise = np.random.default_rng(seed).normal(1.0, 0.03, size=(2, repeats))
    return list(noise[0]), list(noise[1] / slowdown)


def test_a_side_20_percent_slower_comes_out_as_a_loss():
    for seed in range(20):
        stock, compiled = planted(seed, slowdown=1.2)
        assert ratio_of_medians(compiled, stock).verdict == "loss"
        assert ratio_of_medians(stock, compiled).verdict == "gain"


@pytest.mark.parametrize("repeats", [5, 9])
def test_equal_sides_come_out_as_no_difference(repeats):
    verdicts = [ratio_of_medians(*planted(seed, slowdown=1.0, repeats=repeats)).verdict for seed in range(100)]
    assert verdicts.count("no difference") >= 95


@pytest.mark.parametrize("first", [0, 1])
def test_a_wave_that_is_not_finite_is_the_lowest_wherever_it_stands(first):
    good, bad = (torch.ones(1, 4), torch.full((1, 4), 0.9)), (torch.ones(1, 4), torch.full((1, 4), torch.nan))
    assert lowest_db([good, good]) == pytest.approx(20.0, abs=1e-3)
    assert np.isnan(lowest_db([(good, bad), (bad, good)][first]))
    assert lowest_db([good, bad, (torch.ones(1, 4), torch.ones(1, 3))]) is None


def test_figures_that_are_not_finite_are_words_in_json():
    plain = {"a": [1.0, float("nan"), (float("-inf"), None)], "b": {"c": float("inf"), "d": True}}
    assert json.loads(as_json(plain)) == {"a": [1.0, "nan", ["-inf", None]], "b": {"c": "inf", "d": True}}


def test_too_few_repeats_claim_nothing():
    ratio = ratio_of_medians([2.0] * 4, [1.0] * 9)
    assert ratio == Ratio(2.0, None)
    assert ratio.verdict == "unknown"
    assert "too few" in str(ratio)
    assert median_of([2.0] * 4) == Median(2.0, None)
    assert str(median_of([2.0] * 4)) == "2"


def test_the_interval_is_seeded_and_holds_the_ratio():
    first, second = planted(3, slowdown=2.0)
    ratio = ratio_of_medians(first, second, seed=1)
    assert ratio == ratio_of_medians(first, second, seed=1)
    low, high = ratio.interval
    assert low <= ratio.value <= high
    assert ratio.value == pytest.approx(np.median(first) / np.median(second))


def test_drift_that_both_sides_share_and_outliers_invent_no_difference():
    for slowest, outlier in ((1.3, 1.0), (1.0, 1.8)):
        verdicts = []
        for seed in range(100):
            first, second = (np.array(side) * np.linspace(1, slowest, 5) for side in planted(seed, slowdown=1.0))
            first[seed % 5] *= outlier
            verdicts.append(ratio_of_medians(first, second).verdict)
        assert verdicts.count("no difference") >= 95


def test_the_median_of_five_lies_within_their_range_and_that_of_many_is_closer():
    five = median_of([4.0, 1.0, 2.0, 3.0, 9.0])
    assert five == Median(3.0, (1.0, 9.0))
    assert str(five) == "3 (1 to 9)"
    low, high = median_of(list(range(101))).interval
    assert 30 < low < 50 < high < 70


def test_a_difference_has_the_interval_of_its_sides():
    saved = difference_of_medians([10.0, 11.0, 12.0, 13.0, 14.0], [1.0] * 5)
    assert saved.value == 11.0
    assert saved.interval == (9.0, 13.0)


def test_table_is_markdown_with_aligned_columns():
    lines = markdown_table([("a", "long title"), ("longer cell", "b")]).splitlines()
    assert lines[0] == "| a           | long title |"
    assert lines[1] == "|-------------|------------|"
    assert len({len(line) for line in lines}) == 1


def test_a_wasted_step_counts_as_decoding_and_not_as_prompt():
    prompt, step, tokens = 2.0, 0.25, 9
    stock = t3.figures([prompt + step], [prompt + tokens * step], tokens, wasted_steps=1)
    compiled = t3.figures([prompt], [prompt + (tokens - 1) * step], tokens, wasted_steps=0)
    for side in (stock, compiled):
        assert side["decode"] == [4.0]
        assert side["prefill"] == [prompt]
    with pytest.raises(tc.TTSCompileError, match="measure with more tokens"):
        t3.figures([prompt], [prompt], tokens, wasted_steps=0)


def test_the_machine_is_plain_json():
    about = machine.describe()
    assert json.loads(json.dumps(about)) == about
    assert about["versions"]["torch"]
    assert about["cores"] >= 1


def test_a_missing_package_has_no_version(monkeypatch):
    monkeypatch.setattr(machine, "PACKAGES", ("torch", "no-such-package-of-this-name", "tts-compile"))
    found = machine.versions()
    assert found["no-such-package-of-this-name"] is None
    assert found["tts-compile"]


def test_the_peak_grows_with_memory_that_is_touched():
    if not peak.reset_peak():
        pytest.skip("the peak cannot be reset here")
    before, how = peak.peak_bytes()
    np.frombuffer(mmap.mmap(-1, 2**25), dtype=np.uint8)[:] = 1  # malloc may have as much to spare
    after, _ = peak.peak_bytes()
    assert after - before > 2**24
    assert how


def test_quiet_silences_others_and_is_undone(capsys):
    from tqdm import tqdm

    init = vars(tqdm)["__init__"]
    with models.quiet():
        print("chatter")
        list(tqdm(range(3)))
    assert vars(tqdm)["__init__"] is init
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_a_synthetic_checkpoint_is_reused_and_a_temporary_one_removed(tmp_path, monkeypatch):
    written = []

    def write(directory, **settings):
        written.append(settings)
        directory = models.Path(directory)
        directory.mkdir(exist_ok=True)
        (directory / "tokenizer.json").write_text("{}")

    monkeypatch.setattr(models.testing, "write_checkpoint", write)
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: object())
    for _ in range(2):
        with models.checkpoint("synthetic", "small", 1, 60, tmp_path / "kept") as source:
            assert source == str(tmp_path / "kept")
    assert written == [{"size": "small", "seed": 1, "speech_tokens": 60}]
    with models.checkpoint("synthetic", "small", 1, 60, None) as source:
        assert models.Path(source).is_dir()
    assert not models.Path(source).exists()


def test_without_chatterbox_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(tc.TTSCompileError, match=r"pip install 'tts-compile\[chatterbox\]'"),
        models.checkpoint("synthetic", "small", 0, 60, None),
    ):
        pass


def test_weights_that_cannot_be_fetched_are_a_clear_error(monkeypatch):
    tts = pytest.importorskip("chatterbox.tts")

    def refuse(device):
        raise ConnectionError("no route to host\nand a long tail")

    monkeypatch.setattr(tts.ChatterboxTTS, "from_pretrained", refuse)
    with pytest.raises(tc.InputError, match=r"cannot be loaded: ConnectionError: no route to host$"):
        models.load("pretrained", "cpu")


@pytest.fixture(scope="module")
def eager_config(tmp_path_factory):
    """Makes a benchmark run the library's own loop without compiling, since the subject here is the measuring."""
    pytest.importorskip("chatterbox")
    path = tmp_path_factory.mktemp("config") / "eager.toml"
    path.write_text('warmup_samples = 0\n[t3]\nexecution = "eager"\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTS_COMPILE_CONFIG", str(path))
        yield


@pytest.fixture(scope="module")
def result(checkpoint, eager_config):
    with models.quiet():
        return t3.run(str(checkpoint), t3.Settings(repeats=2, tokens=6, text="A short text."))


def test_a_small_bench_proves_identity_and_no_recompiling(result):
    assert result.tokens_identical == result.inputs == 2
    assert result.generator_identical
    assert result.later_graphs == 0
    assert result.passed


def test_a_small_bench_measures_every_repeat(result):
    for side in result.sides.values():
        assert len(side["first"]) == len(side["full"]) == 2
        assert min(side["decode"]) > 0
    assert [side["wasted_steps"] for side in result.sides.values()] == [1, 0]


def test_a_small_bench_is_json_and_a_table(result):
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["passed"]
    assert plain["tokens_identical"] is True
    assert plain["gains"]["decode"]["verdict"] == "unknown"
    assert plain["stock"]["call_s"]["value"] == pytest.approx(np.mean(plain["stock"]["full"]))
    assert plain["report"]["components"]["t3"]["calls"] > 0
    assert "decode, tokens/s" in str(result)
    assert "WARNING: 2 repeats" in str(result)


def test_a_model_that_stops_early_is_an_error(checkpoint, eager_config):
    with models.quiet(), pytest.raises(tc.InputError, match="stopped after"):
        t3.run(str(checkpoint), t3.Settings(repeats=1, tokens=100))
