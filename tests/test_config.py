from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts_compile import CompileConfig, ComponentPolicy, ConfigError, TTSCompileError
from tts_compile.config import COMPONENTS, DTYPES, EXECUTIONS, SETTINGS
from tts_compile.fallback import POLICIES

VALUES = {
    "execution": st.sampled_from(EXECUTIONS),
    "backend": st.sampled_from(["inductor", "aot_eager"]),
    "mode": st.sampled_from(["default", "max-autotune"]),
    "dynamic": st.sampled_from([None, True, False]),
    "dtype": st.sampled_from(DTYPES),
    "draft_tokens": st.none() | st.integers(0, 7),
    "fuse": st.sampled_from([None, True, False]),
}
# A value other than the default for each setting that some components do not have.
CHANGED = {"backend": "aot_eager", "mode": "max-autotune", "dynamic": True, "draft_tokens": 5, "fuse": False}
ladders = st.lists(st.integers(0, 2000), unique=True, max_size=6).map(
    lambda found: tuple(zip(sorted(found), sorted(found)[1:]))
)
configs = st.builds(
    CompileConfig,
    **{name: st.builds(ComponentPolicy, **{s: VALUES[s] for s in SETTINGS[name]}) for name in COMPONENTS},
    buckets=ladders,
    fallback=st.sampled_from(POLICIES),
    warmup_samples=st.integers(0, 9),
    memory_limit_gb=st.none() | st.floats(0.5, 64),
    cache_dir=st.none() | st.just("cache"),
)


@given(configs)
def test_round_trip_through_plain_values(config: CompileConfig) -> None:
    plain = json.loads(json.dumps(config.to_dict()))
    assert CompileConfig.from_mapping(plain) == config
    assert hash(CompileConfig.from_mapping(plain)) == hash(config)


@pytest.mark.parametrize("config", [CompileConfig(), ComponentPolicy()])
def test_frozen(config: Any) -> None:
    name = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, getattr(config, name))


def test_presets() -> None:
    assert CompileConfig.exact() == CompileConfig()
    assert CompileConfig.exact().t3.dtype == "model"
    assert CompileConfig.fast() != CompileConfig.exact()
    assert {getattr(CompileConfig.off(), name).execution for name in COMPONENTS} == {"stock"}


def test_replace() -> None:
    config = CompileConfig().replace(fallback="raise")
    assert config == CompileConfig(fallback="raise")
    with pytest.raises(ConfigError, match="'fallback'"):
        config.replace(falback="raise")
    with pytest.raises(ConfigError):
        config.replace(fallback="never")


@pytest.mark.parametrize(
    ("mapping", "nearest"),
    [
        ({"volcoder": {}}, "vocoder"),
        ({"warmup_sample": 1}, "warmup_samples"),
        ({"COMPILE_TTS_DECODR": True}, "COMPILE_TTS_DECODER"),
        ({"t3": {"executon": "eager"}}, "execution"),
        ({"zzz": 1}, ""),
    ],
)
def test_unknown_key_names_the_nearest(mapping: dict[str, Any], nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key .*nearest known: '{nearest}") as caught:
        CompileConfig.from_mapping(mapping)
    assert isinstance(caught.value, (TTSCompileError, ValueError))


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        CompileConfig.from_mapping(
            {
                "volcoder": {},
                "t3": {"execution": "indutcor", "dtype": "fp8", "speed": 11},
                "flow": 7,
                "vocoder": {"draft_tokens": 5},
                "fallback": "maybe",
                "warmup_samples": -1,
                "memory_limit_gb": float("nan"),
                "buckets": [[200, 50]],
                "cache_dir": 3,
                "ENABLE_TORCH_COMPILE": "yes",
            }
        )
    message = str(caught.value)
    for part in ("volcoder", "'inductor'", "fp8", "speed", "flow", "maybe", "-1", "nan", "(200, 50)", "cache_dir"):
        assert part in message
    assert "ENABLE_TORCH_COMPILE" in message
    assert "draft_tokens has no effect on vocoder, only on t3" in caught.value.mistakes
    assert len(caught.value.mistakes) == 12


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"t3": "eager"}, "t3 must be a ComponentPolicy"),
        ({"warmup_samples": True}, "warmup_samples"),
        ({"warmup_samples": 1.5}, "warmup_samples"),
        ({"memory_limit_gb": 0}, "memory_limit_gb"),
        ({"memory_limit_gb": float("inf")}, "memory_limit_gb"),
        ({"buckets": 5}, "buckets"),
        ({"buckets": ((0, 10), (20, 30))}, "gap"),
        ({"buckets": ((0, 10), (5, 30))}, "overlap"),
        ({"fallback": "rais"}, "did you mean 'raise'"),
    ],
)
def test_values_out_of_range(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        CompileConfig(**changes)


@pytest.mark.parametrize(
    "changes", [{"execution": "fast"}, {"dtype": "fp64"}, {"backend": ""}, {"mode": None}, {"dynamic": 1}]
)
def test_policy_values_out_of_range(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        ComponentPolicy(**changes)


@pytest.mark.parametrize("setting", CHANGED)
@pytest.mark.parametrize("name", COMPONENTS)
def test_a_setting_without_effect_on_its_component(name: str, setting: str) -> None:
    policy = ComponentPolicy(**{setting: CHANGED[setting]})
    ways = (
        lambda: CompileConfig(**{name: policy}),
        lambda: CompileConfig().replace(**{name: policy}),
        lambda: CompileConfig.from_mapping({name: {setting: CHANGED[setting]}}),
    )
    if setting in SETTINGS[name]:
        assert {getattr(make(), name) for make in ways} == {policy}
        return
    owners = ", ".join(owner for owner in COMPONENTS if setting in SETTINGS[owner])
    for make in ways:
        with pytest.raises(ConfigError) as caught:
            make()
        assert caught.value.mistakes == (f"{setting} has no effect on {name}, only on {owners}",)


def test_every_setting_has_an_effect_on_some_component() -> None:
    assert set().union(*SETTINGS.values()) == {field.name for field in dataclasses.fields(ComponentPolicy)}
    fields = [field.name for field in dataclasses.fields(CompileConfig) if field.type == "ComponentPolicy"]
    assert fields == list(COMPONENTS)


def test_all_settings_without_effect_are_named_at_once() -> None:
    policy = ComponentPolicy(backend="aot_eager", draft_tokens=0)
    with pytest.raises(ConfigError) as caught:
        CompileConfig(vocoder=policy, watermark=policy, fallback="maybe")
    assert len(caught.value.mistakes) == 4


def test_reference_report_settings() -> None:
    config = CompileConfig.from_mapping(
        {
            "ENABLE_TORCH_COMPILE": True,
            "COMPILE_VOICE_ENCODER": False,
            "COMPILE_TTS_DECODER": True,
            "TORCH_COMPILE_BACKEND": "aot_eager",
            "TORCH_COMPILE_MODE": "reduce-overhead",
            "ENABLE_CHUNK_SIZE_BUCKETING": True,
            "CHUNK_BUCKET_SHORT_RANGE": [10, 100],
            "CHUNK_BUCKET_MEDIUM_RANGE": [100, 300],
            "CHUNK_BUCKET_LONG_RANGE": [300, 400],
        }
    )
    assert (config.t3.execution, config.t3.backend, config.t3.mode) == ("auto", "aot_eager", "reduce-overhead")
    assert (config.vocoder.backend, config.vocoder.mode) == ("aot_eager", "reduce-overhead")
    assert config.voice_encoder == ComponentPolicy(execution="stock")  # which has nothing to compile
    assert config.watermark == ComponentPolicy()
    assert config.buckets == ((10, 100), (100, 300), (300, 400))


def test_reference_switches() -> None:
    assert CompileConfig.from_mapping({"ENABLE_TORCH_COMPILE": False}) == CompileConfig.off()
    assert CompileConfig.from_mapping({"COMPILE_TTS_DECODER": False}).t3.execution == "stock"
    assert CompileConfig.from_mapping({"ENABLE_CHUNK_SIZE_BUCKETING": False}).buckets == ()
    assert CompileConfig.from_mapping({}) == CompileConfig()


def test_field_name_wins_over_the_reference_setting() -> None:
    config = CompileConfig.from_mapping({"COMPILE_TTS_DECODER": False, "t3": {"execution": "eager"}})
    assert config.t3.execution == "eager"


@pytest.mark.parametrize("mapping", [None, [("t3", {})], "t3"])
def test_mapping_must_be_a_mapping(mapping: Any) -> None:
    with pytest.raises(ConfigError, match="mapping"):
        CompileConfig.from_mapping(mapping)


def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('fallback = "raise"\nbuckets = [[1, 5], [5, 9]]\n[t3]\nexecution = "eager"\n', encoding="utf-8")
    expected = CompileConfig(fallback="raise", buckets=((1, 5), (5, 9)), t3=ComponentPolicy(execution="eager"))
    assert CompileConfig.from_toml(path) == CompileConfig.from_toml(str(path)) == expected


@pytest.mark.parametrize("content", [b"fallback = ", b"\xff\xfe", b"fallbak = 'raise'", None])
def test_bad_toml_is_a_config_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError):
        CompileConfig.from_toml(path)


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CompileConfig.from_env() == CompileConfig.exact()
    monkeypatch.setenv("TTS_COMPILE_CACHE_DIR", "somewhere")
    assert CompileConfig.from_env() == CompileConfig(cache_dir="somewhere")
    path = tmp_path / "config.toml"
    path.write_text('fallback = "raise"\ncache_dir = "elsewhere"\n', encoding="utf-8")
    monkeypatch.setenv("TTS_COMPILE_CONFIG", str(path))
    assert CompileConfig.from_env() == CompileConfig(fallback="raise", cache_dir="somewhere")
    monkeypatch.delenv("TTS_COMPILE_CACHE_DIR")
    assert CompileConfig.from_env().cache_dir == "elsewhere"


@pytest.mark.parametrize("value", ["0", "false", "No", " OFF "])
def test_kill_switch_in_the_environment(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TTS_COMPILE", value)
    monkeypatch.setenv("TTS_COMPILE_CONFIG", "missing.toml")  # is not even read
    assert CompileConfig.from_env() == CompileConfig.off()


@pytest.mark.parametrize("value", ["1", "", "true"])
def test_kill_switch_needs_a_no(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TTS_COMPILE", value)
    assert CompileConfig.from_env() == CompileConfig.exact()
