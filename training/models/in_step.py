"""Forward passes of several networks in step: each halts behind chosen layers, and goes on later.

A forward that is written as one function can only be halted with its stack. So each has a thread
of its own, and the threads take turns: exactly one of them runs at any time, or the caller does.
So nothing is locked, random numbers are drawn in the same order each time, and autograd sees one
graph. docs/decisions/0018 says why.
"""

import contextvars
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Inputs: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]
"""What a network is called with: one tensor, its arguments in order, or its arguments by name."""


@dataclass(frozen=True, slots=True)
class _Told:
    """What a pass says when its turn ends: an output, or the error that ended it."""

    output: object = None
    error: BaseException | None = None


class _GivenUpError(BaseException):
    """Unwinds a pass that nobody will go on with. No network should catch it."""


_GIVE_UP = object()


class Walk:
    """One forward pass of one network, from layer to layer. Use it as a context manager.

    Args:
        name: The network's, for errors.
        network: Runs as it is; it has hooks while the pass lasts.
        layers: Where it halts, by name and in the order in which they run.
        inputs: What it is called with.
    """

    def __init__(
        self, name: str, network: nn.Module, layers: Mapping[str, nn.Module], inputs: Inputs
    ) -> None:
        self._name, self._network, self._inputs = name, network, inputs
        self._layers = layers
        self._names = list(layers)
        self._passed = 0
        self._turns: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[_Told] = queue.SimpleQueue()
        self._hooks: list[RemovableHandle] = []
        self._modes = _Modes.now()
        # A copy of the caller's context variables; torch's own modes follow in `_run`.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name=name, daemon=True)

    def __enter__(self) -> "Walk":
        for index, layer in enumerate(self._layers.values()):
            self._hooks.append(layer.register_forward_hook(self._hook(index)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread.is_alive():
            self._turns.put(_GIVE_UP)
            self._thread.join()
        for hook in self._hooks:
            hook.remove()

    def advance(self, instead: object = None) -> object:
        """Run to the next layer, or to the end; returns what that layer, or the network, gives.

        Args:
            instead: What the layer at which the pass halts returns in place of its own output; None
                leaves it its own.

        Raises:
            BaseException: Whatever the network raised.
            RuntimeError: It did not pass its layers once each and in order, or autograd could not
                follow.
        """
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._turns.put(instead)
        told = self._told.get()
        if told.error is not None:
            raise told.error
        return told.output

    def _run(self) -> None:
        try:
            told = _Told(self._output())
        except BaseException as error:  # noqa: BLE001 - raised anew by the caller
            told = _Told(error=error)
        self._told.put(told)

    def _output(self) -> object:
        with self._modes.entered():
            output = _call(self._network, self._inputs)
        if self._passed < len(self._names):
            raise RuntimeError(
                f"branch {self._name!r} ended without passing {self._names[self._passed]!r}; "
                f"name layers that every forward pass runs, as modules, or leave this one out"
            )
        return output

    def _hook(self, index: int) -> Callable[[nn.Module, object, object], object]:
        def halt(_layer: nn.Module, _inputs: object, output: object) -> object:
            # The same network may serve two branches, or be called by somebody else meanwhile.
            if threading.current_thread() is not self._thread:
                return None
            self._check(index)
            self._passed += 1
            self._told.put(_Told(output))
            instead = self._turns.get()
            if instead is _GIVE_UP:
                raise _GivenUpError
            return instead

        return halt

    def _check(self, index: int) -> None:
        layer = self._names[index]
        if index != self._passed:
            order = "twice" if index < self._passed else f"before {self._names[self._passed]!r}"
            raise RuntimeError(
                f"branch {self._name!r} passes {layer!r} {order}; it can halt at each layer once, "
                f"in the order of the points"
            )
        if not self._modes.grad:
            return
        where = f"{layer!r} of branch {self._name!r}"
        if not torch.is_grad_enabled():
            raise RuntimeError(
                f"gradients are switched off at {where}: by a reentrant checkpoint, or by the "
                f"branch itself. Switch checkpointing off there, or freeze the branch by "
                f"requires_grad_(False)"
            )
        # Public, and refuses where a checkpoint has its hooks: recomputed without the other
        # branches, what follows this layer would be wrong without a word.
        with torch.autograd.graph.disable_saved_tensors_hooks(
            f"{where} lies in a part that is checkpointed (or otherwise handles saved tensors), "
            f"which would be recomputed without the fusion; switch checkpointing off in this "
            f"branch, or name a layer outside"
        ):
            pass


@dataclass(frozen=True, slots=True)
class _Modes:
    """torch's modes that belong to a thread, as they are for the caller.

    Attributes:
        grad: Whether gradients are wanted.
        inference: Whether in inference mode.
        autocast: Type by kind of device, of those that are cast.
        stream: The CUDA stream, which knows its device; None where CUDA is not in use.
    """

    grad: bool
    inference: bool
    autocast: Mapping[str, torch.dtype]
    stream: torch.cuda.Stream | None

    @staticmethod
    def now() -> "_Modes":
        return _Modes(
            grad=torch.is_grad_enabled(),
            inference=torch.is_inference_mode_enabled(),
            autocast={
                kind: torch.get_autocast_dtype(kind)
                for kind in ("cpu", "cuda")
                if torch.is_autocast_enabled(kind)
            },
            stream=torch.cuda.current_stream() if _cuda_in_use() else None,
        )

    def entered(self) -> AbstractContextManager[Any]:
        stack = ExitStack()
        stack.enter_context(torch.inference_mode(self.inference))
        stack.enter_context(torch.set_grad_enabled(self.grad))
        for kind, dtype in self.autocast.items():
            stack.enter_context(torch.autocast(kind, dtype))
        if self.stream is not None:
            stack.enter_context(torch.cuda.device(self.stream.device))
            stack.enter_context(torch.cuda.stream(self.stream))
        return stack


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _call(network: nn.Module, inputs: Inputs) -> object:
    if isinstance(inputs, Tensor):
        return network(inputs)
    return network(**inputs) if isinstance(inputs, Mapping) else network(*inputs)
