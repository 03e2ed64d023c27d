"""Speak one text with a compiled model and write a WAV file.

python examples/speak.py "Hello there."               # synthetic weights: the real classes, a meaningless sound
python examples/speak.py "Hello there." --pretrained  # published weights, downloaded by chatterbox
python examples/speak.py "Hello there." --checkpoint folder --voice reference.wav
"""

import argparse
import tempfile

import torch

import tts_compile as tc
from tts_compile import testing
from tts_compile.audio.wav import write_wav


def load(args):
    """The stock model that the arguments ask for."""
    if args.pretrained:
        from chatterbox.tts import ChatterboxTTS

        return ChatterboxTTS.from_pretrained(args.device)
    if args.checkpoint:
        return testing.load_checkpoint(args.checkpoint, device=args.device)
    with tempfile.TemporaryDirectory() as folder:
        return testing.load_checkpoint(testing.write_checkpoint(folder, size="small"), device=args.device)


def main():
    """Load, compile, speak, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", default="Hello there, this is a compiled model.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", help="folder with the published files")
    source.add_argument("--pretrained", action="store_true", help="download the published weights")
    parser.add_argument("--voice", help="WAV file with the voice to speak in")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="speak.wav")
    args = parser.parse_args()

    tts = load(args)
    with tc.compile_model(tts) as fast:
        print(fast.warmup())
        torch.manual_seed(args.seed)
        wave = fast.generate(args.text, audio_prompt_path=args.voice)  # float32 (1, samples)
        print(fast.report())
    write_wav(args.out, wave[0].numpy(), tts.sr)
    print(f"{args.out}: {wave.shape[1] / tts.sr:.1f} s")


if __name__ == "__main__":
    main()
