"""Utterances that are spoken together: one pass over the weights serves all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import NonFiniteError
from ...timing.blocks import timed
from .cache import KVCache, Part
from .noise import NoiseStream
from .sampling import SamplingSettings, choose, guide, probabilities
from .step import DecoderPass


@dataclass(eq=False)
class Utterance:
    """One text on its way to speech tokens.

    Attributes:
        prompt: embeddings (sequences, length, width) of voice, text and start.
        budget: tokens at most.
        noise: its random numbers.
        tokens: those chosen so far.
        error: what ended it before its time.
        ended: whether it is complete, or has failed.
    """

    prompt: Tensor
    budget: int
    noise: NoiseStream
    tokens: list[int] = field(default_factory=list)
    error: NonFiniteError | None = None
    ended: bool = False

    @property
    def place(self) -> int:
        """Where the key and value of the last token go."""
        return self.prompt.shape[1] + len(self.tokens) - 1


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that mean something to the loop."""

    start: int
    stop: int


@dataclass
class Guesses:
    """How many tokens were guessed, and how many of them the model has verified."""

    made: int = 0
    verified: int = 0


class Decoding:
    """Utterances with equal settings over one cache, each with its own position, end and random numbers.

    An utterance takes the first free slot, and the last one takes the slot of one that has ended, so that passes see
    neighbours only. What an utterance speaks does not depend on the others.

    An utterance that is alone is guessed ahead: a copy of the model guesses tokens and the model verifies them in one
    pass. A guess is kept only if the model samples the same token from the same random numbers, so that the tokens
    are those of the model alone; only the speed depends on the guesses.

    Args:
        prefill: prompt embeddings (sequences, count, width), where they begin, and the part of the cache that holds
            what comes before them; writes theirs, and gives logits (sequences, 1, vocabulary) after the last.
        decode: a pass of the model.
        draft: a pass of the copy that guesses; None for no guesses.
        ahead: tokens guessed at a time.
        guesses: where they are counted.
        rotary: (2, positions, head_dim), for every position of the cache.
        cache: with a slot for each utterance.
        settings: of all utterances.
        vocabulary: start and stop.
        listener: called with the guided logits (vocabulary,) behind every token; guesses are not heard.

    Attributes:
        active: the utterances, by slot.
    """

    def __init__(
        self,
        prefill: Callable[[Tensor, int, Part], Tensor],
        decode: DecoderPass,
        draft: DecoderPass | None,
        ahead: int,
        guesses: Guesses,
        rotary: Tensor,
        cache: KVCache,
        settings: SamplingSettings,
        vocabulary: Vocabulary,
        listener: Callable[[Tensor], object] | None = None,
    ) -> None:
        self.active: list[Utterance] = []
        self._prefill = prefill
        self._decode = decode
        self._draft = draft
        self._ahead = ahead if draft else 0
        self._guesses = guesses
        self._rotary = rotary
        self._cache = cache
        self._settings = settings
        self._vocabulary = vocabulary
        self._listener = listener
        like = cache.keys
        self._cfg_weight = torch.tensor(settings.cfg_weight, dtype=like.dtype, device=like.device)
        # start, then the tokens; filled up with start, which counts as spoken anyway
        self._history = torch.full((cache.slots, cache.capacity), vocabulary.start, device=like.device)

    @timed("t3.prefill")
    def begin(self, utterance: Utterance) -> None:
        """Read the prompt of one more utterance and choose its first token."""
        slot = len(self.active)
        self._cache.vacate(slot)
        self._history[slot] = self._vocabulary.start
        logits = self._read(utterance.prompt, slot)
        self.active.append(utterance)
        self._add([slot], guide(logits, self._cfg_weight, self._cache.guided)[:, 0])

    def advance(self, alone: bool = True) -> None:
        """One pass: at least one more token for every utterance.

        Args:
            alone: whether no other utterance will join the only one there is.
        """
        ahead = self._ahead if alone and len(self.active) == 1 else 0
        guesses = self._guess(ahead) if ahead else []
        padding = [0] * (ahead - len(guesses))  # one shape for all passes; overwritten by the next
        logits = self._pass(self._decode, [[u.tokens[-1], *guesses, *padding] for u in self.active])
        self._add(list(range(len(self.active))), logits[:, 0])
        for index, guess in enumerate(guesses, 1):
            (utterance,) = self.active
            if utterance.ended or utterance.tokens[-1] != guess:
                break
            self._guesses.verified += 1
            self._add([0], logits[:, index])

    def leave(self) -> list[Utterance]:
        """The utterances that have ended; their slots are free, and their random numbers settled."""
        ended = [utterance for utterance in self.active if utterance.ended]
        for utterance in ended:
            slot, last = self.active.index(utterance), len(self.active) - 1
            mover = self.active.pop()
            if slot != last:
                self.active[slot] = mover
                self._cache.move(last, slot, mover.place)
                self._history[slot] = self._history[last]
            utterance.noise.settle(len(utterance.tokens))
        return ended

    def _read(self, prompt: Tensor, slot: int) -> Tensor:
        """Logits after a prompt, sequence by sequence where others in the cache begin like it."""
        rows = len(prompt)
        first = slot * rows
        shared = [self._copy_start(prompt[row], first + row) for row in range(rows)]
        if not any(shared):
            return self._prefill(prompt, 0, self._cache.part(first, rows))
        logits = [
            self._prefill(prompt[row : row + 1, start:], start, self._cache.part(first + row, 1))
            for row, start in enumerate(shared)
        ]
        return torch.cat(logits)

    def _copy_start(self, prompt: Tensor, target: int) -> int:
        """Copy what another sequence has of the same beginning; the number of positions copied.

        Keys and values depend on what comes before them alone. The voice begins every prompt, and without its text an
        unconditional one is all the same but for its length.
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

    def _guess(self, ahead: int) -> list[int]:
        """What the copy samples next; its keys and values are overwritten when they are verified."""
        (utterance,) = self.active
        spoken = len(utterance.tokens)
        # The token after the last guess comes for free, so that guessing it too would be one guess too many.
        ahead = min(ahead, utterance.budget - spoken - 1)
        token = utterance.tokens[-1]
        guesses: list[int] = []
        while self._draft and len(guesses) < ahead and token != self._vocabulary.stop:
            logits = self._pass(self._draft, [[token]], after=len(guesses))
            (token,), _ = self._choose([0], logits[:, 0], after=len(guesses))
            guesses.append(token)
            self._history[0, spoken + len(guesses)] = token
        self._history[0, spoken + 1 : spoken + 1 + len(guesses)] = self._vocabulary.start
        self._guesses.made += len(guesses)
        return guesses

    def _pass(self, decoder: DecoderPass, tokens: list[list[int]], after: int = 0) -> Tensor:
        """Guided logits (utterances, count, vocabulary), ``after`` tokens beyond those chosen."""
        block = torch.tensor(tokens, device=self._history.device)
        spoken = [len(utterance.tokens) + after for utterance in self.active]
        places = [utterance.place + after for utterance in self.active]
        return decoder(block, spoken, self._rotary, places, self._cache, self._cfg_weight)

    def _add(self, slots: list[int], logits: Tensor) -> None:
        """Choose one more token for the utterances in some slots from guided logits (utterances, vocabulary)."""
        chosen, finite = self._choose(slots, logits)
        if self._listener:
            for row in logits:
                self._listener(row)
        for slot, token, trusted in zip(slots, chosen, finite):
            utterance = self.active[slot]
            index = len(utterance.tokens)
            if not trusted:
                message = f"T3 gave non-finite logits at token {index}; the utterance was given up"
                utterance.error, utterance.ended = NonFiniteError(message), True
                continue
            utterance.tokens.append(token)
            utterance.noise.release(index)
            utterance.ended = token == self._vocabulary.stop or len(utterance.tokens) == utterance.budget
        lengths = [len(self.active[slot].tokens) for slot in slots]
        self._history[slots, lengths] = torch.tensor(chosen, device=self._history.device)

    def _choose(self, slots: list[int], logits: Tensor, after: int = 0) -> tuple[list[int], list[bool]]:
        """Tokens ``after`` those chosen, given them, and which of them to trust."""
        indices = [len(self.active[slot].tokens) + after for slot in slots]
        seen = self._history[slots[0] : slots[-1] + 1, : max(indices) + 1]  # neighbours
        noise = torch.cat([self.active[slot].noise[index] for slot, index in zip(slots, indices)])
        tokens, finite = choose(probabilities(logits, seen, self._settings), noise)
        both = torch.stack([tokens, finite.long()]).tolist()  # waits for the device once
        return both[0], [bool(value) for value in both[1]]
