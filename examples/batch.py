"""Generates a text file in chunks, many at a time, and writes one WAV file.

python examples/batch.py                         # a few sentences, random weights: a sound without meaning
python examples/batch.py BOOK.txt --pretrained   # a text file, published weights, downloaded on first use
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import soundfile

import tts_compile as tc
from tts_compile import testing

TEXT = "It was a dark night. The rain fell in torrents, except now and then.\n\nNobody was about. Then a dog barked!"


def main():
    """Splits a text, generates its chunks together and joins the waves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, help="UTF-8 text")
    parser.add_argument("--pretrained", action="store_true", help="download the published weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-chars", type=int, default=200, help="longest chunk, in characters")
    parser.add_argument("--pause", type=float, default=0.3, help="silence between chunks, in seconds")
    parser.add_argument("--out", default="batch.wav")
    args = parser.parse_args()

    if args.pretrained:
        tts = tc.load_pretrained("ChatterboxTTS", args.device)
    else:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = testing.write_checkpoint(folder, size="small", speech_tokens=30)
            tts = testing.load_checkpoint(checkpoint, device=args.device)

    chunks = tc.split_text(args.file.read_text(encoding="utf-8") if args.file else TEXT, args.max_chars)
    pause = np.zeros(int(args.pause * tts.sr), dtype=np.float32)
    with tc.compile_model(tts) as fast:
        waves = fast.generate_batch(chunks, seeds=range(len(chunks)), progress=True)
        print(fast.report())
    soundfile.write(args.out, np.concatenate([part for wave in waves for part in (wave[0].numpy(), pause)]), tts.sr)
    print(args.out)


if __name__ == "__main__":
    main()
