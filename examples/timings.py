"""Prints the time of each stage, then compares the compiled model with stock."""

import tempfile

import tts_compile as tc
from tts_compile import testing


def main():
    """Generates one text three times, prints the timings, then validates."""
    with tempfile.TemporaryDirectory() as folder:
        tts = testing.load_checkpoint(testing.write_checkpoint(folder, size="small", speech_tokens=20))
    with tc.compile_model(tts) as fast:
        fast.warmup()
        for seed in range(3):
            with fast.seeded(seed):
                fast.generate("One, two, three.")
        print(f"{fast.timings}\n")
        print(fast.validate(["One, two, three."], transcribe=False))


if __name__ == "__main__":
    main()
