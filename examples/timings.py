"""Where the time goes, and whether the compiled model gives what stock gives."""

import tempfile

import torch

import tts_compile as tc
from tts_compile import testing


def main():
    """Speak three times, print the time of each stage, then compare with stock."""
    with tempfile.TemporaryDirectory() as folder:
        tts = testing.load_checkpoint(testing.write_checkpoint(folder, size="small", speech_tokens=20))
    with tc.compile_model(tts) as fast:
        fast.warmup()
        for seed in range(3):
            torch.manual_seed(seed)
            fast.generate("One, two, three.")
        print(f"{fast.timings}\n")
        print(fast.validate(["One, two, three."], transcribe=False))


if __name__ == "__main__":
    main()
