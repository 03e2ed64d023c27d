"""Real Chatterbox classes with synthetic weights, for tests, demos and benchmarks.

Speed and wiring do not depend on the weights' values. A few other properties do, and the weights are made to have them:
next-token distributions are peaked, the model stops by itself near a wanted length that grows with the text, and
waves are finite and of speech-like level. The files have the published layout, and the stock class's own ``from_local``
reads them.
"""

from ..audio.synthetic_voice import make_reference_wav
from .checkpoint import SIZES, VARIANTS, load_checkpoint, write_checkpoint
from .depth import architecture_of
from .offline import nothing_fetched

__all__ = [
    "SIZES",
    "VARIANTS",
    "architecture_of",
    "load_checkpoint",
    "make_reference_wav",
    "nothing_fetched",
    "write_checkpoint",
]
