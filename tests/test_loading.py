"""A loaded model equals stock's tensor by tensor, and the error for a bad checkpoint lists every problem."""

from __future__ import annotations

import copy
import dataclasses
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tts_compile as tc
from conftest import EAGER
from sameness import everything, same
from speech import SHORT, random_states, seed_everything
from tts_compile.families import family_named
from tts_compile.families.checkpoint_files import NO_FILES
from tts_compile.loading import stock_class
from tts_compile.loading.from_local import assign_weights
from tts_compile.loading.mapped_files import Stored, mapped
from tts_compile.testing.depth import SMALL, built_with


def load(folder: Path, cls: Any = "ChatterboxTTS", variant: str = "english", **options: Any) -> Any:
    """Calls ``load_model`` with the depth of a small checkpoint, even if its files are damaged."""
    with built_with(SMALL[variant], variant), tc.testing.nothing_fetched():
        return tc.load_model(cls, folder, **options)


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> Any:
    return load(checkpoint)


@pytest.fixture(scope="module")
def stock(checkpoint: Path) -> Any:
    """A stock model that never generates: ``generate`` leaves attributes on a model."""
    return tc.testing.load_checkpoint(checkpoint)


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may damage; its files are links until they are replaced."""
    target = tmp_path / "checkpoint"
    target.mkdir()
    for path in checkpoint.iterdir():
        (target / path.name).hardlink_to(path)
    return target


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    path.unlink()  # the link, not the original
    save_file(tensors, path)


def test_equal_to_stock_tensor_by_tensor(loaded: Any, stock: Any) -> None:
    same(loaded, stock)
    for part in ("t3", "s3gen", "ve"):  # as named, which also says what is shared
        ours, theirs = getattr(loaded, part), getattr(stock, part)
        for kind in ("named_parameters", "named_buffers", "named_modules"):
            names = [[name for name, _ in getattr(m, kind)(remove_duplicate=False)] for m in (ours, theirs)]
            assert names[0] == names[1]
        assert len({id(p) for p in ours.parameters()}) == len({id(p) for p in theirs.parameters()})
    assert loaded.tokenizer.encode("Words, words.") == stock.tokenizer.encode("Words, words.")
    windows = [name for name, value in everything(stock) if isinstance(value, torch.Tensor) and "window" in name]
    assert windows  # the comparison reaches plain attributes


@pytest.mark.parametrize("zipped", [True, False], ids=["zipped", "as torch before 1.6"])
def test_tensors_in_another_order_of_memory_are_copied(tmp_path: Path, zipped: bool) -> None:
    matrix, bias = torch.randn(3, 80).T, torch.randn(80, 2)[:, 0]
    torch.save({"weight": matrix, "bias": bias}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    module = nn.Linear(3, 80)
    stored = mapped(tmp_path / "a.pt", weights_only=True)
    assert not stored["weight"].is_contiguous()
    assert assign_weights(module, stored, None, own_memory=False, lenient=False) == []
    assert torch.equal(module.weight, matrix)
    assert torch.equal(module.bias, bias)
    assert module.weight.is_contiguous()
    assert module.bias.is_contiguous()


def test_tensors_that_are_one_in_the_file_are_two_in_the_model() -> None:
    stored = Stored("a.pt", lambda: dict.fromkeys(("0.bias", "1.bias"), torch.arange(80.0)))
    module = nn.ModuleList([nn.Linear(3, 80), nn.Linear(3, 80)])
    for linear in module:
        del linear.weight
    assert assign_weights(module, stored, None, own_memory=False, lenient=False) == []
    first, second = module.parameters()
    assert torch.equal(first, second)
    assert torch.equal(first, torch.arange(80.0))
    assert first.data_ptr() != second.data_ptr()


def test_a_voice_converter_needs_less(folder: Path) -> None:
    for name in ("ve.safetensors", "t3_cfg.safetensors", "tokenizer.json"):
        (folder / name).unlink()
    with tc.testing.architecture_of(folder, "voice conversion"):
        ours = tc.load_model("ChatterboxVC", folder)
        same(ours, family_named("voice conversion").load_class().from_local(folder, "cpu"))


def test_weights_stay_in_the_files(loaded: Any, checkpoint: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the system does not tell what is mapped")
    files = {line.split()[-1]: line.split("-")[0] for line in maps.read_text().splitlines() if "safetensors" in line}
    assert str(checkpoint / "t3_cfg.safetensors") in files
    start = loaded.t3.tfmr.layers[0].mlp.up_proj.weight.data_ptr()
    spans = [line.split()[0].split("-") for line in maps.read_text().splitlines() if "t3_cfg" in line]
    assert any(int(low, 16) <= start < int(high, 16) for low, high in spans)


def test_own_memory_leaves_the_files_alone_and_speaks_bit_for_bit(folder: Path, model: Any, stock: Any) -> None:
    ours = load(folder, mmap=False)
    same(ours, stock)
    for path in folder.iterdir():
        path.unlink()
    waves = []
    for tts in (ours, model):
        seed_everything(3)
        waves.append(tts.generate(SHORT))
    assert torch.equal(*waves)


def test_mapped_weights_can_be_written_to_and_the_files_stay(loaded: Any, checkpoint: Path) -> None:
    before = (checkpoint / "ve.safetensors").read_bytes()
    ours = load(checkpoint)
    with torch.no_grad():
        next(ours.ve.parameters()).add_(1)
    assert (checkpoint / "ve.safetensors").read_bytes() == before
    assert not torch.equal(next(ours.ve.parameters()), next(loaded.ve.parameters()))


def test_the_generators_the_collector_and_stock_are_left_as_they_were(checkpoint: Path) -> None:
    from chatterbox.models.t3 import T3
    from chatterbox.tts import ChatterboxTTS

    before = dict(vars(ChatterboxTTS)), dict(vars(T3)), dict(vars(nn.Module)), dict(vars(nn.init)), torch.load
    seed_everything(1)
    states = random_states()
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            ours = load(checkpoint)
            assert gc.isenabled() == enabled
        finally:
            gc.enable()
    assert random_states() == states
    assert (dict(vars(ChatterboxTTS)), dict(vars(T3)), dict(vars(nn.Module)), dict(vars(nn.init)), torch.load) == before
    assert not any("load_state_dict" in vars(module) for module in (ours.t3, ours.s3gen, ours.ve))


def test_other_threads_build_modules_meanwhile_as_ever(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from chatterbox.models.t3 import T3

    weights: list[torch.Tensor] = []
    init = T3.__init__

    def slow(self: Any, *args: Any) -> None:
        init(self, *args)
        thread = threading.Thread(target=lambda: weights.append(nn.Linear(64, 64).weight))
        thread.start()
        thread.join()

    monkeypatch.setattr(T3, "__init__", slow)
    load(checkpoint)
    assert 0.02 < weights[0].std() < 0.2  # as nn.Linear initialises: uniform within 1 / 8


def test_another_thread_goes_on_drawing_random_numbers(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from chatterbox.models.t3 import T3

    init, drawn = T3.__init__, list[torch.Tensor]()

    def meanwhile(self: Any, *args: Any) -> None:
        thread = threading.Thread(target=lambda: drawn.append(torch.rand(3)))
        thread.start()
        thread.join()
        init(self, *args)

    monkeypatch.setattr(T3, "__init__", meanwhile)
    torch.manual_seed(5)
    load(checkpoint)
    drawn.append(torch.rand(3))
    torch.manual_seed(5)
    assert torch.equal(torch.cat(drawn), torch.cat([torch.rand(3), torch.rand(3)]))


def test_works_inside_inference_mode_and_can_be_copied(checkpoint: Path, stock: Any) -> None:
    with torch.inference_mode():
        ours = load(checkpoint)
    same(ours, stock)
    same(copy.deepcopy(ours.s3gen), copy.deepcopy(stock.s3gen))


def test_compiles_like_any_other(loaded: Any, model: Any) -> None:
    with tc.compile_model(loaded, EAGER) as fast:
        seed_everything(2)
        ours = fast.generate(SHORT)
    with tc.compile_model(model, EAGER) as fast:
        seed_everything(2)
        assert ours.shape == fast.generate(SHORT).shape


@pytest.mark.parametrize(("dtype", "wanted"), [("bf16", torch.bfloat16), (torch.float16, torch.float16)])
def test_t3_in_half_precision_speaks_with_any_voice(
    dtype: Any, wanted: torch.dtype, checkpoint: Path, stock: Any, tmp_path: Path, silent: Callable[[Any], list[Any]]
) -> None:
    ours = load(checkpoint, dtype=dtype)
    weights = dict(stock.t3.named_parameters())
    for name, weight in ours.t3.named_parameters():
        assert torch.equal(weight, weights[name].to(wanted)), name
    same(ours.s3gen, stock.s3gen)
    same(ours.ve, stock.ve, least=16)
    assert ours.conds.t3.speaker_emb.dtype == torch.float32
    spoken = silent(ours)
    ours.generate(SHORT, exaggeration=0.7)
    ours.prepare_conditionals(tc.testing.make_reference_wav(tmp_path / "voice.wav", 6))
    with tc.compile_model(ours, EAGER) as fast:
        fast.generate(SHORT)
        assert fast.report().components["t3"].calls > 0
    ours.generate(SHORT)
    assert len(spoken) == 3
    assert all(spoken)


def test_halves_in_the_file_become_what_the_model_has(folder: Path) -> None:
    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    rewrite(folder / "t3_cfg.safetensors", halve)
    ours = load(folder)
    same(ours, tc.testing.load_checkpoint(folder))
    assert ours.t3.speech_head.weight.dtype == torch.float32


def test_buffers_that_chatterbox_computes_need_not_be_stored(folder: Path, stock: Any) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["tokenizer._mel_filters"], tensors["tokenizer.window"]

    rewrite(folder / "s3gen.safetensors", drop)
    same(load(folder), stock)


@pytest.mark.parametrize("mmap", [True, False])
def test_older_names_of_weight_norms_are_understood_as_stock_does(folder: Path, stock: Any, mmap: bool) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".parametrizations.weight.original" in name]:
            module, _, number = name.partition(".parametrizations.weight.original")
            tensors[f"{module}.weight_{'gv'[int(number)]}"] = tensors.pop(name)

    rewrite(folder / "s3gen.safetensors", rename)
    assert any(name.endswith(".weight_g") for name in load_file(folder / "s3gen.safetensors"))
    same(load(folder, mmap=mmap), stock)


def test_what_is_not_the_files_fault_is_not_said_of_them(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(stock_class("ChatterboxTTS")):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError("its own mistake")

    with pytest.raises(ZeroDivisionError, match="its own mistake"):
        load(checkpoint, Own)
    from chatterbox.models.t3 import T3

    monkeypatch.setattr(T3, "__init__", lambda self, *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load(checkpoint)


def problems(folder: Path, cls: str = "ChatterboxTTS", **options: Any) -> list[str]:
    with pytest.raises(tc.CheckpointError) as caught:
        load(folder, cls, **options)
    assert isinstance(caught.value, tc.InputError)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    assert str(folder) in str(caught.value)
    return list(caught.value.problems)


def test_everything_that_is_wrong_is_said_at_once(folder: Path) -> None:
    def mistake(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["flow.input_embedding.weight"]
        tensors["flow.somebody"] = torch.zeros(1)
        tensors["flow.spk_embed_affine_layer.bias"] = torch.zeros(81)
        tensors["flow.encoder_proj.bias"] = torch.zeros(80, dtype=torch.int64)

    rewrite(folder / "s3gen.safetensors", mistake)
    content = (folder / "t3_cfg.safetensors").read_bytes()
    (folder / "t3_cfg.safetensors").unlink()
    (folder / "t3_cfg.safetensors").write_bytes(content[: len(content) // 2])
    (folder / "ve.safetensors").unlink()
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text("{")
    (folder / "conds.pt").unlink()
    (folder / "conds.pt").write_bytes(b"nothing")
    found = problems(folder)
    assert len(found) == 8, found
    for start in (
        "ve.safetensors is missing",
        "tokenizer.json: ",
        "conds.pt: ",
        "t3_cfg.safetensors: ",
        "s3gen.safetensors: flow.input_embedding.weight is missing",
        "s3gen.safetensors: flow.somebody does not belong to this model",
        "s3gen.safetensors: flow.spk_embed_affine_layer.bias has the shape (81,) instead of (80,)",
        "s3gen.safetensors: flow.encoder_proj.bias holds torch.int64 instead of torch.float32",
    ):
        assert sum(problem.startswith(start) for problem in found) == 1, start


def test_nothing_is_moved_to_the_device_before_the_files_are_known_to_be_good(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[Any] = []
    monkeypatch.setattr(nn.Module, "to", lambda self, *args, **_: moved.append(args) or self)
    rewrite(folder / "s3gen.safetensors", lambda tensors: tensors.pop("flow.encoder_proj.bias"))
    problems(folder, device="meta")
    assert set(moved) == {("cpu",)}


def test_stock_leaves_a_missing_parameter_random_and_this_does_not(folder: Path) -> None:
    rewrite(folder / "s3gen.safetensors", lambda tensors: tensors.pop("flow.encoder_proj.bias"))
    tc.testing.load_checkpoint(folder)
    assert problems(folder, strict=False) == ["s3gen.safetensors: flow.encoder_proj.bias is missing"]


def test_what_stock_ignores_can_be_ignored(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["somebody"] = torch.zeros(1)
        del tensors["speaker_encoder.xvector.tdnn.nonlinear.batchnorm.running_mean"]

    rewrite(folder / "s3gen.safetensors", change)
    assert len(problems(folder)) == 2
    same(load(folder, strict=False), tc.testing.load_checkpoint(folder))
    rewrite(folder / "t3_cfg.safetensors", lambda tensors: tensors.update(somebody=torch.zeros(1)))
    assert problems(folder, strict=False) == [
        "t3_cfg.safetensors: somebody does not belong to this model"
    ]  # not even by stock


def test_another_variant_is_named(folder: Path) -> None:
    for name, new in (("t3_cfg", "t3_turbo_v1"), ("s3gen", "s3gen_meanflow")):
        (folder / f"{name}.safetensors").rename(folder / f"{new}.safetensors")
    (folder / "tokenizer_config.json").write_text("{}")
    found = problems(folder)
    assert "t3_cfg.safetensors is missing" in found
    assert "these are the files of ChatterboxTurboTTS" in found


def test_a_checkpoint_of_another_depth_is_said_tensor_by_tensor(checkpoint: Path) -> None:
    with pytest.raises(tc.CheckpointError) as caught:
        tc.load_model("ChatterboxTTS", checkpoint)  # whose classes have 30 layers
    missing = [problem for problem in caught.value.problems if problem.startswith("t3_cfg.safetensors: tfmr.layers.29")]
    assert len(missing) == 9


def test_a_tokenizer_that_is_none_is_said_beside_the_rest(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "ve.safetensors").unlink()
    (folder / "ve.safetensors").touch()
    found = problems(folder)
    assert len(found) == 2
    assert found[0].startswith("ve.safetensors: ")


def test_folders_that_are_none(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(tc.CheckpointError, match="no such folder"):
            tc.load_model("ChatterboxTTS", path)
    with pytest.raises(tc.CheckpointError) as caught:
        tc.load_model("ChatterboxTTS", tmp_path)
    assert len(caught.value.problems) == 4


def test_other_arguments_are_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(tc.UnsupportedModelError, match="known classes: ChatterboxTTS"):
        tc.load_model("Chatterbox", checkpoint)
    with pytest.raises(tc.UnsupportedModelError, match=r"cannot load .*Linear; supported: .*ChatterboxTTS"):
        tc.load_model(nn.Linear, checkpoint)
    for dtype in ("int8", torch.float64, 3):
        with pytest.raises(tc.InputError, match="dtype"):
            load(checkpoint, dtype=dtype)
    with pytest.raises(tc.InputError, match="has no T3"):
        load(checkpoint, "ChatterboxVC", dtype="bf16")
    with pytest.raises(tc.InputError, match="must be a folder"):
        load(None)  # type: ignore[arg-type]
    for device in ("nowhere", "cuda:99", 3.5):
        with pytest.raises(tc.InputError, match="device"):
            load(checkpoint, device=device)

    class Own(stock_class("ChatterboxTTS")):  # type: ignore[misc]
        @classmethod
        def from_local(cls, ckpt_dir: Any, device: Any) -> Any:
            raise AssertionError("called")

    with pytest.raises(tc.UnsupportedModelError, match="not chatterbox's own"):
        load(checkpoint, Own)


def test_a_family_without_files_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = dataclasses.replace(family_named("english"), name="own", files=NO_FILES)
    monkeypatch.setattr("tts_compile.loading.model.family_of", lambda *_: family)
    with pytest.raises(tc.UnsupportedModelError, match="'own' declares no checkpoint files"):
        tc.load_model(nn.Linear, checkpoint)


def test_a_way_of_loading_that_is_not_known_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import chatterbox.tts

    source = Path(chatterbox.tts.__file__).read_text().split("def from_local")[1].split("@classmethod")[0]
    source = "@classmethod\ndef from_local" + source.replace("\n    ", "\n").replace("t3.load_state_dict(t3_state)", "")
    scope = vars(chatterbox.tts)
    exec(source, scope)
    monkeypatch.setattr(chatterbox.tts.ChatterboxTTS, "from_local", scope.pop("from_local"))
    with pytest.raises(tc.UnsupportedModelError, match="gives T3 its weights"):
        load(checkpoint)


def test_published_weights_are_found_as_stock_finds_them(
    checkpoint: Path, stock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import chatterbox.tts

    asked: list[str] = []

    def download(repo_id: str, filename: str) -> str:
        asked.append(filename)
        return str(checkpoint / filename)

    monkeypatch.setattr(chatterbox.tts, "hf_hub_download", download)
    with tc.testing.architecture_of(checkpoint, "english"):
        ours = tc.load_pretrained("ChatterboxTTS")
    assert sorted(asked) == sorted(path.name for path in checkpoint.iterdir())
    for wrong in ({"dtype": "int8"}, {"device": "cuda:99"}):
        asked.clear()
        with pytest.raises(tc.InputError):
            tc.load_pretrained("ChatterboxTTS", **wrong)
        assert not asked
    assert type(ours) is stock_class("ChatterboxTTS")
    same(ours, stock)


def test_a_derived_class_gives_its_own_objects(checkpoint: Path) -> None:
    class Own(stock_class("ChatterboxTTS")):  # type: ignore[misc]
        pass

    assert type(load(checkpoint, Own)) is Own


def test_the_device_is_as_asked(checkpoint: Path) -> None:
    ours = load(checkpoint, device="meta")
    assert ours.device == "meta"
    assert {p.device.type for part in (ours.t3, ours.s3gen, ours.ve) for p in part.parameters()} == {"meta"}
    assert ours.conds.t3.speaker_emb.is_meta
    assert ours.conds.gen["prompt_token"].is_meta
