"""Generates one text with a compiled model and writes a WAV file.

python examples/speak.py "Hello there."               # random weights in the real classes: a sound without meaning
python examples/speak.py "Hello there." --pretrained  # published weights, downloaded on first use
python examples/speak.py "Hello there." --checkpoint FOLDER --voice me.wav
"""

import argparse
import tempfile

import soundfile

import tts_compile as tc
from tts_compile import testing


def load(args):
    """Loads the stock model that the arguments name."""
    if args.pretrained:
        return tc.load_pretrained("ChatterboxTTS", args.device)
    if args.checkpoint:
        return tc.load_model("ChatterboxTTS", args.checkpoint, args.device)
    with tempfile.TemporaryDirectory() as folder:
        return testing.load_checkpoint(testing.write_checkpoint(folder, size="small"), device=args.device)


def main():
    """Loads and compiles a model, generates a text and writes the wave."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", default="Hello there, this is a compiled model.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", help="folder with the published files")
    source.add_argument("--pretrained", action="store_true", help="download the published weights")
    parser.add_argument("--voice", help="recording of the voice to use, about ten seconds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="speak.wav")
    args = parser.parse_args()

    tts = load(args)
    with tc.compile_model(tts) as fast:
        print(fast.warmup())
        with fast.seeded(args.seed):
            wave = fast.generate(args.text, audio_prompt_path=args.voice)  # float32 (1, samples)
        print(fast.report())
    soundfile.write(args.out, wave[0].numpy(), tts.sr)
    print(f"{args.out}: {wave.shape[1] / tts.sr:.1f} s")


if __name__ == "__main__":
    main()
