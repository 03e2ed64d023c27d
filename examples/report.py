"""What the report says when steps run compiled, when they do not, and when the model was given back."""

import tempfile

import torch

import tts_compile as tc
from tts_compile import testing


def main():
    """Speak once per configuration and print the report of each."""
    with tempfile.TemporaryDirectory() as folder:
        tts = testing.load_checkpoint(testing.write_checkpoint(folder, size="small", speech_tokens=20))
    for execution in ("auto", "eager", "stock"):
        config = tc.CompileConfig(t3=tc.ComponentPolicy(execution=execution))
        with tc.compile_model(tts, config) as fast:
            torch.manual_seed(0)
            fast.generate("One, two, three.")
            print(f"\nt3 asked to run {execution}:\n{fast.report()}")
    print("\nas a dictionary, after restore():")
    print(fast.report().to_dict()["components"]["t3"])


if __name__ == "__main__":
    main()
