"""Real Chatterbox classes with synthetic weights, for tests, demos and benchmarks.

Speed does not depend on what the weights are, and neither does the wiring; a few things do and are arranged here:
next-token distributions are peaked, the model stops by itself near a wanted length that grows with the text, and
waves are finite and of speech-like level. The files have the published layout and are read by the stock class's own
``from_local``.
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
