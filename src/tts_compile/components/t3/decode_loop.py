"""The token loop: utterances that are spoken together, since one pass over the weights serves all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import NonFiniteError
from ...families.sampling import NoiseStream, SamplingSettings, choose, guide
from ...timing.blocks import timed
from .cache import KVCache
from .step import Block, DecoderPass


@dataclass(eq=False)
class Utterance:
    """One text on its way to speech tokens.

    Attributes:
        prompt: embeddings (sequences, length, width) of voice, text and start.
        budget: tokens at most.
        noise: its random numbers.
        tokens: sampled so far.
        error: what ended the utterance before its time.
        ended: whether the utterance is complete, or has failed.
    """

    prompt: Tensor
    budget: int
    noise: NoiseStream
    tokens: list[int] = field(default_factory=list)
    error: NonFiniteError | None = None
    ended: bool = False

    @property
    def position(self) -> int:
        """Returns where the key and value of the last token go."""
        return self.prompt.shape[1] + len(self.tokens) - 1


class Vocabulary(NamedTuple):
    """The tokens with a meaning for the loop.

    Attributes:
        start, stop: the start and the stop token.
        start_is_seen: whether the start token counts for the repetition penalty.
    """

    start: int
    stop: int
    start_is_seen: bool


@dataclass
class DraftCounts:
    """How many tokens were drafted, and how many of them the model accepted."""

    drafted: int = 0
    accepted: int = 0


@dataclass
class Passes:
    """The passes of one model.

    Attributes:
        prefill: takes prompt embeddings (sequences, count, width), the first one's position, and the part of the cache
            with what comes before; writes keys and values, and returns logits (sequences, 1, vocabulary).
        decode: of the model.
        draft: of the copy that drafts tokens; None for no drafts.
        draft_tokens: drafted at a time.
        counts: of draft tokens.
        listener: called with the guided logits (vocabulary,) behind every token but draft tokens.
    """

    prefill: Callable[[Tensor, int, KVCache], Tensor]
    decode: DecoderPass
    draft: DecoderPass | None = None
    draft_tokens: int = 0
    counts: DraftCounts = field(default_factory=DraftCounts)
    listener: Callable[[Tensor], object] | None = None


class DecodeLoop:
    """Utterances with equal settings over one cache, each with its own position, end and random numbers.

    An utterance takes the first free slot, and the last one takes the slot of one that has ended, so that passes read
    neighbours only. The tokens of an utterance do not depend on the others.

    For an utterance that is alone, a copy of the model drafts tokens, and the model verifies them in one pass. A draft
    token is accepted only if the model samples the same token from the same random numbers, so that the tokens are
    those of the model alone; only the speed depends on the drafts.

    Args:
        passes: of the model.
        cache: with a slot for each utterance.
        settings: of all utterances.
        vocabulary: start and stop.

    Attributes:
        active: the utterances, by slot.
    """

    def __init__(self, passes: Passes, cache: KVCache, settings: SamplingSettings, vocabulary: Vocabulary) -> None:
        self.active: list[Utterance] = []
        self._passes = passes
        self._cache = cache
        self._settings = settings
        self._vocabulary = vocabulary
        like = cache.keys
        self._cfg_weight = torch.tensor(settings.cfg_weight, dtype=like.dtype, device=like.device)
        # The start token, then the others; filled up with a token that is seen anyway: repeats count once.
        self._history = torch.full((cache.slots, cache.capacity), vocabulary.start, device=like.device)

    @timed("t3.prefill")
    def begin(self, utterance: Utterance) -> None:
        """Feeds the prompt of one more utterance and samples its first token."""
        slot = len(self.active)
        self._cache.vacate(slot)
        self._history[slot] = self._vocabulary.start
        logits = self._read(utterance.prompt, slot)
        self.active.append(utterance)
        self._add([slot], guide(logits, self._cfg_weight, self._cache.guided)[:, 0])
        if utterance.tokens and not self._vocabulary.start_is_seen:
            self._history[slot] = utterance.tokens[0]

    def advance(self, alone: bool = True) -> None:
        """Runs one pass: at least one more token for every utterance.

        Args:
            alone: whether no other utterance will join the only one.
        """
        ahead = self._passes.draft_tokens if self._passes.draft and alone and len(self.active) == 1 else 0
        drafted = self._draft(ahead) if ahead else []
        padding = [0] * (ahead - len(drafted))  # one shape for all passes; overwritten by the next
        logits = self._run(self._passes.decode, [[u.tokens[-1], *drafted, *padding] for u in self.active])
        self._add(list(range(len(self.active))), logits[:, 0])
        for index, token in enumerate(drafted, 1):
            (utterance,) = self.active
            if utterance.ended or utterance.tokens[-1] != token:
                break
            self._passes.counts.accepted += 1
            self._add([0], logits[:, index])

    def leave(self) -> list[Utterance]:
        """Takes out the utterances that have ended; settles their random numbers."""
        ended = [utterance for utterance in self.active if utterance.ended]
        for utterance in ended:
            slot, last = self.active.index(utterance), len(self.active) - 1
            mover = self.active.pop()
            if slot != last:
                self.active[slot] = mover
                self._cache.move(last, slot, mover.position)
                self._history[slot] = self._history[last]
            utterance.noise.settle(len(utterance.tokens))
        return ended

    def _read(self, prompt: Tensor, slot: int) -> Tensor:
        """Returns the logits after a prompt; sequence by sequence where others in the cache begin like it."""
        rows = len(prompt)
        first = slot * rows
        shared = [self._copy_start(prompt[row], first + row) for row in range(rows)]
        if not any(shared):
            return self._passes.prefill(prompt, 0, self._cache.part(first, rows))
        logits = [
            self._passes.prefill(prompt[row : row + 1, start:], start, self._cache.part(first + row, 1))
            for row, start in enumerate(shared)
        ]
        return torch.cat(logits)

    def _copy_start(self, prompt: Tensor, target: int) -> int:
        """Copies what another sequence has of the same beginning; returns the number of positions copied.

        Keys and values depend only on what comes before them. The voice begins every prompt, and without its text an
        unconditional one differs in its length alone.
        """
        best, source = 0, 0
        for slot, utterance in enumerate(self.active):
            for row, other in enumerate(utterance.prompt):
                length = min(len(prompt), len(other)) - 1  # logits come from a pass, so that one position is left
                same = (prompt[:length] == other[:length]).all(1)
                common = length if bool(same.all()) else int(same.int().argmin())
                if common > best:
                    best, source = common, slot * len(utterance.prompt) + row
        if best:
            self._cache.copy_start(source, target, best)
        return best

    def _draft(self, ahead: int) -> list[int]:
        """Returns what the copy samples next; its keys and values are overwritten when they are verified."""
        (utterance,) = self.active
        spoken = len(utterance.tokens)
        # The token after the last draft token comes for free, so that drafting it too would be one too many.
        ahead = min(ahead, utterance.budget - spoken - 1)
        token = utterance.tokens[-1]
        filler = self._history[0, 0].clone()
        drafted: list[int] = []
        while self._passes.draft and len(drafted) < ahead and token != self._vocabulary.stop:
            logits = self._run(self._passes.draft, [[token]], after=len(drafted))
            (token,), _ = self._choose([0], logits[:, 0], after=len(drafted))
            drafted.append(token)
            self._history[0, spoken + len(drafted)] = token
        self._history[0, spoken + 1 : spoken + 1 + len(drafted)] = filler
        self._passes.counts.drafted += len(drafted)
        return drafted

    def _run(self, decoder: DecoderPass, tokens: list[list[int]], after: int = 0) -> Tensor:
        """Returns guided logits (utterances, count, vocabulary), ``after`` tokens beyond those sampled."""
        block = Block(
            tokens=torch.tensor(tokens, device=self._history.device),
            spoken=[len(utterance.tokens) + after for utterance in self.active],
            starts=[utterance.position + after for utterance in self.active],
        )
        return decoder(block, self._cache, self._cfg_weight)

    def _add(self, slots: list[int], logits: Tensor) -> None:
        """Samples one more token for the utterances in some slots from guided logits (utterances, vocabulary)."""
        chosen, valid = self._choose(slots, logits)
        if self._passes.listener:
            for row in logits:
                self._passes.listener(row)
        for slot, token, finite in zip(slots, chosen, valid):
            utterance = self.active[slot]
            index = len(utterance.tokens)
            if not finite:
                message = f"T3 gave non-finite logits at token {index}; the utterance was given up"
                utterance.error, utterance.ended = NonFiniteError(message), True
                continue
            utterance.tokens.append(token)
            utterance.noise.release(index)
            utterance.ended = token == self._vocabulary.stop or len(utterance.tokens) == utterance.budget
        lengths = [len(self.active[slot].tokens) for slot in slots]
        self._history[slots, lengths] = torch.tensor(chosen, device=self._history.device)

    def _choose(self, slots: list[int], logits: Tensor, after: int = 0) -> tuple[list[int], list[bool]]:
        """Returns the tokens ``after`` those sampled, and which of them come from finite logits."""
        indices = [len(self.active[slot].tokens) + after for slot in slots]
        seen = self._history[slots[0] : slots[-1] + 1, : max(indices) + 1]  # neighbours
        noise = torch.cat([self.active[slot].noise[index] for slot, index in zip(slots, indices)])
        tokens, finite = choose(self._settings.probabilities(logits, seen), noise)
        both = torch.stack([tokens, finite.long()]).tolist()  # waits for the device once
        return both[0], [bool(value) for value in both[1]]
