"""Puts components onto a model, takes them off, and exchanges them for what another process has compiled."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch

from . import background
from .components.component_set import ComponentSet
from .config import CompileConfig
from .errors import ModelStateError
from .execution.process_lock import ProcessLock, locked
from .families import Family
from .report import ComponentReport, ExecutionReport
from .timing.blocks import Timings

logger = logging.getLogger(__name__)

HANDLE = "_tts_compile_handle"  # the attribute of a compiled model that holds its handle


class Attachment:
    """The components of one model, which are attached when it is made.

    Args:
        handle: stored on the model while the components are attached.
        tts: the stock model.
        family: its family.
        config: the configuration.
        timings: receives the durations of calls.

    Attributes:
        components: the components in use.
        attached: whether they are on the model now.
        background: the process that compiles; None without one, and after :meth:`switch`.
    """

    def __init__(self, handle: object, tts: Any, family: Family, config: CompileConfig, timings: Timings) -> None:
        self.tts = tts
        self.family = family
        self.config = config
        self.attached = False
        self.background = background.start(tts, family, config)
        self._handle = handle
        self._timings = timings
        self._earlier: dict[str, ComponentReport] = {}  # rows of components that were exchanged
        self._suspended = False
        self._process = ProcessLock()
        try:
            first = background.eager_at_first(config) if self.background is not None else config
            self.components = ComponentSet(tts, family, first, timings)
            self._attach()
        except BaseException:
            if self.background is not None:
                self.background.stop()
            raise

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Returns the lock of whole utterances, which a stock model takes too; only compiled code refuses a fork."""
        return self.components.lock() if self.attached else locked()

    def report(self) -> ExecutionReport:
        """Returns a row for each component; waits for the device."""
        rows = self.components.report()
        if self.background is not None:
            rows = {name: row.while_compiling(getattr(self.config, name).execution) for name, row in rows.items()}
        for name, row in self._earlier.items():
            rows[name] = rows[name].after(row, "while another process compiled")
        return ExecutionReport(self.attached, rows)

    def switch(self, wait: bool = False) -> bool:
        """Takes up what the background process has compiled, if it has ended; call this under the lock.

        Args:
            wait: wait for the end of the process.

        Returns:
            Whether the process has just ended, so that other components may be in use now.
        """
        running = self.background
        if running is None or not self.attached or (running.running and not wait):
            return False
        running.wait()
        earlier = self.components.report()
        try:
            # Copies of weights outlive the call that switches, which may run in inference mode.
            with self._detached(), torch.inference_mode(mode=False), torch.no_grad():
                made = ComponentSet(self.tts, self.family, self.config, self._timings)
                self.components, self._earlier = made, earlier
        except ModelStateError as error:  # another program has replaced a method again: nothing can be detached
            logger.warning("what was compiled in the background is not used: %s", error)
        self.background = None
        return True

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Makes the model stock inside the block, and attaches the components again after it.

        Raises:
            ModelStateError: at the end of the block, when the model was compiled again inside it.
        """
        if not self.attached:
            yield
            return
        with self.components.lock(), self._detached():
            yield

    def restore(self) -> None:
        """Detaches the components, releases their memory and ends the background process; a second call does nothing.

        Raises:
            ModelStateError: when another program has replaced a method again.
        """
        with locked() if self._process.forked else self.components.lock():
            self._suspended = False
            if self.attached:
                self._detach()
            self.components.release()
            if self.background is not None:
                self.background.stop()
                self.background = None

    # An interrupt may come between any two lines below. So the mark that a model is compiled is set before its
    # components are attached and removed after they are detached, and every step can be done twice.

    @contextlib.contextmanager
    def _detached(self) -> Iterator[None]:
        """Detaches inside the block and attaches after it, unless :meth:`restore` was called in it."""
        try:
            try:
                self._suspended = True
                self._detach()
                yield
            finally:
                self._resume()
        except BaseException:
            self._resume()  # the rest of it, where an interrupt came in the middle
            raise

    def _resume(self) -> None:
        if self._suspended:
            self._attach()
            self._suspended = False

    def _detach(self) -> None:
        self.components.detach()
        vars(self.tts).pop(HANDLE, None)
        self.attached = False

    def _attach(self) -> None:
        if vars(self.tts).get(HANDLE) not in (None, self._handle):  # a copied model has None
            self._suspended = False
            raise ModelStateError("the model was compiled again; call restore() on that handle first")
        self.attached = True
        setattr(self.tts, HANDLE, self._handle)
        try:
            self.components.attach()
        except BaseException:
            self._detach()
            raise
