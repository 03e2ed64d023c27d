"""Prints the report of a compiled, an eager and a stock T3, and the report after ``restore()``."""

import tempfile

import tts_compile as tc
from tts_compile import testing


def main():
    """Generates one text per configuration and prints each report."""
    with tempfile.TemporaryDirectory() as folder:
        tts = testing.load_checkpoint(testing.write_checkpoint(folder, size="small", speech_tokens=20))
    for execution in ("auto", "eager", "stock"):
        config = tc.CompileConfig(t3=tc.ComponentPolicy(execution=execution))
        with tc.compile_model(tts, config) as fast:
            with fast.seeded(0):
                fast.generate("One, two, three.")
            print(f"\nT3 with execution={execution!r}:\n{fast.report()}")
    print("\nT3's part of the report as a dictionary, after restore():")
    print(fast.report().to_dict()["components"]["t3"])


if __name__ == "__main__":
    main()
