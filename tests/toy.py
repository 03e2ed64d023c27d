"""A speech model that is not Chatterbox: characters in, tokens of a small Qwen2, and a tone for each token out.

Below it stands its declaration as a family, as another project would write it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2Model

import tts_compile as tc
from tts_compile.backbones.stock_forward import StockForward
from tts_compile.families import SpeechCall, SpeechModel, Synthesis, VoiceSlot
from tts_compile.families.sampling import REPETITION_PENALTY, TEMPERATURE, SamplingSettings

START, STOP, VOCABULARY, SAMPLES = 48, 49, 50, 240


class ToyLM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        self.tfmr = Qwen2Model(Qwen2Config(vocab_size=1, max_position_embeddings=512, **sizes, **heads))
        self.characters = nn.Embedding(256, 64)
        self.audio_emb = nn.Embedding(VOCABULARY, 64)
        self.audio_head = nn.Linear(64, VOCABULARY, bias=False)

    @torch.inference_mode()
    def sample(
        self, ids: Tensor, pitch: float, temperature: float = 0.9, penalty: float = 1.1, most: int = 80
    ) -> Tensor:
        """Speech tokens (1, n); stop is not among them."""
        x = torch.cat([self.characters(ids) * pitch, self.audio_emb(torch.tensor([[START]]))], dim=1)
        cache, tokens = None, []
        for _ in range(most):
            out = self.tfmr(inputs_embeds=x, past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, self.audio_head(out.last_hidden_state[:, -1])
            seen = torch.tensor([tokens or [START]])
            picked = logits.gather(1, seen)
            logits = logits.scatter(1, seen, torch.where(picked < 0, picked * penalty, picked / penalty)) / temperature
            tokens.append(int(torch.multinomial(logits.softmax(-1), 1)))
            if tokens[-1] == STOP:
                return torch.tensor([tokens[:-1]])
            x = self.audio_emb(torch.tensor([tokens[-1:]]))
        return torch.tensor([tokens])


class ToyTTS:
    sr = 24_000

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.lm = ToyLM().eval()
        self.device = "cpu"
        self.pitch = 1.0

    def read_pitch(self, path: str) -> None:
        self.pitch = float(len(path))

    def generate(
        self, text: str, pitch_path: str | None = None, temperature: float = 0.9, penalty: float = 1.1
    ) -> Tensor:
        if pitch_path:
            self.read_pitch(pitch_path)
        return tones(self.lm.sample(characters(text), self.pitch, temperature, penalty)[0])


def characters(text: str) -> Tensor:
    return torch.tensor([list(text.encode())])


def tones(tokens: Tensor) -> Tensor:
    phase = torch.arange(SAMPLES) / SAMPLES * torch.pi * 2
    return torch.sin(phase * (1 + tokens[:, None])).reshape(1, -1) * 0.1


# declaration
def call(lm: Any, given: Mapping[str, Any]) -> SpeechCall:
    settings = SamplingSettings.checked(PROCESSORS, given)
    return SpeechCall(given["pitch"], given["ids"], settings, limit=given["most"])


def prompt(lm: Any, call: SpeechCall) -> Tensor:
    start = lm.audio_emb(torch.tensor([[START]]))
    return torch.cat([lm.characters(call.text_tokens) * call.voice, start], dim=1)


PROCESSORS = (
    dataclasses.replace(REPETITION_PENALTY, name="penalty", default=1.1),
    dataclasses.replace(TEMPERATURE, default=0.9),
)
TOY = tc.Family(
    name="toy",
    stock_class=f"{ToyTTS.__module__}.ToyTTS",
    package=ToyTTS.__module__,
    modules=("lm",),
    voice=VoiceSlot("pitch", "read_pitch", "pitch_path"),
    speech=SpeechModel(
        attribute="lm",
        method="sample",
        limit="most",
        budget=80,
        backbone=StockForward("tfmr", "audio_emb", "audio_head"),
        call=call,
        prompt=prompt,
        text_tokens=lambda tts, text, guided: characters(text),
        start=lambda lm: START,
        stop=lambda lm: STOP,
        processors=PROCESSORS,
        start_counts_as_seen=False,
        keeps_stop=False,
        head="audio_head",
    ),
    synthesis=Synthesis(
        finish_tokens=lambda tts, tokens: torch.tensor([token for token in tokens if token != STOP]),
        wave=lambda tts, tokens, voice: tones(tokens),
    ),
)
# end of the declaration
