"""Which changes of a module's attributes count as changed weights."""

from __future__ import annotations

import torch
from torch import nn

from tts_compile.components.seam import Seam
from tts_compile.components.weight_watch import WeightWatch


def watched() -> tuple[nn.Module, WeightWatch]:
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval()
    watch = WeightWatch(lambda: [module])
    watch.look()
    assert watch.look() == (True, None)
    return module, watch


def test_the_mark_of_transformers_and_the_librarys_own_methods_are_no_changes() -> None:
    module, watch = watched()
    module._output_capturing_hooks_installed = True
    assert watch.look() == (True, None)
    seam, outer = (Seam(module[0], "forward", lambda x: x) for _ in range(2))
    for act in (seam.attach, outer.attach, outer.detach, seam.detach):
        act()
        assert watch.look() == (True, None)


def test_any_other_attribute_is_a_change_once() -> None:
    module, watch = watched()
    for name, value in (("scale", 2.0), ("scale", 3.0), ("table", torch.ones(2)), ("table", torch.ones(2))):
        setattr(module[1], name, value)
        assert watch.look() == (False, None)
        assert watch.look() == (True, None)
    del module[1].scale
    assert watch.look() == (False, None)


def test_a_change_beside_a_replaced_method_is_one() -> None:
    module, watch = watched()
    Seam(module[0], "forward", lambda x: x).attach()
    module[0].scale = 2.0
    assert watch.look() == (False, None)
    with torch.no_grad():
        module[0].weight.add_(1)
    assert watch.look() == (False, None)
