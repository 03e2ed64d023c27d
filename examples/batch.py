"""Speak a text file chunk by chunk, many at a time, and write one WAV file.

python examples/batch.py                         # a few sentences, synthetic weights: a meaningless sound
python examples/batch.py BOOK.txt --pretrained   # a text file, published weights, downloaded by chatterbox
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import tts_compile as tc
from tts_compile import testing
from tts_compile.audio.wav import write_wav

TEXT = "It was a dark night. The rain fell in torrents, except now and then.\n\nNobody was about. Then a dog barked!"


def main():
    """Split, speak, join."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, help="UTF-8 text")
    parser.add_argument("--pretrained", action="store_true", help="download the published weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-chars", type=int, default=200, help="of a chunk")
    parser.add_argument("--pause", type=float, default=0.3, help="seconds between chunks")
    parser.add_argument("--out", default="batch.wav")
    args = parser.parse_args()

    if args.pretrained:
        from chatterbox.tts import ChatterboxTTS

        tts = ChatterboxTTS.from_pretrained(args.device)
    else:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = testing.write_checkpoint(folder, size="small", speech_tokens=30)
            tts = testing.load_checkpoint(checkpoint, device=args.device)

    chunks = tc.split_text(args.file.read_text(encoding="utf-8") if args.file else TEXT, args.max_chars)
    pause = np.zeros(int(args.pause * tts.sr), dtype=np.float32)
    with tc.compile_model(tts) as fast:
        waves = fast.generate_batch(chunks, seeds=range(len(chunks)), progress=True)
        print(fast.report())
    write_wav(args.out, np.concatenate([part for wave in waves for part in (wave[0].numpy(), pause)]), tts.sr)
    print(args.out)


if __name__ == "__main__":
    main()
