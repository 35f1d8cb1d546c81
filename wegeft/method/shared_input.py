"""Layers that read one input read it once: q, k and v of an attention block, gate and up of an MLP."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wegeft.method.edit import read_codes
from wegeft.method.weights import GeneratorWeights

_SIBLINGS: tuple[frozenset[str], ...] = (
    frozenset({"q_proj", "k_proj", "v_proj"}),
    frozenset({"query", "key", "value"}),
    frozenset({"q", "k", "v"}),
    frozenset({"q_lin", "k_lin", "v_lin"}),
    frozenset({"gate_proj", "up_proj"}),
    frozenset({"wi_0", "wi_1"}),
    frozenset({"w1", "w3"}),
)
"""Names of layers that architectures feed with the same tensor. A wrong guess costs time, never correctness: inputs are compared."""

_OTHER_INPUTS = ("cross", "encdec", "enc_attn", "encoder_attn")
"""Parts of names of blocks whose queries and keys read different inputs."""


def sibling_names(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of ``names`` that are expected to read the same input as ``name``, itself included, sorted."""
    parent, _, last = name.rpartition(".")
    if any(part in parent.lower() for part in _OTHER_INPUTS):
        return (name,)
    together = next((siblings for siblings in _SIBLINGS if last in siblings), frozenset({last}))
    return tuple(sorted(other for other in names if other.rpartition(".")[0] == parent and other.rpartition(".")[2] in together))


@dataclass
class _Reading:
    x: Tensor
    version: int
    with_gradient: bool
    reread: Tensor
    codes: dict[str, tuple[Tensor, int, Tensor]]
    """By layer: ψ, its version, and the code made with it."""


class SharedInput:
    """The last input that several layers read, with the codes of those that have not come for theirs yet.

    One per model. Every use is checked: the same tensor object, unchanged since, with the same ψ, unchanged since.
    """

    def __init__(self) -> None:
        self._reading: _Reading | None = None

    def __reduce__(self) -> tuple[type["SharedInput"], tuple[()]]:
        return SharedInput, ()

    def read(self, name: str, x: Tensor, readers: Mapping[str, GeneratorWeights]) -> tuple[Tensor, Tensor]:
        """Return x to go on with and the code of layer ``name``, making the codes of all ``readers`` at once if they are not there.

        ``readers``: the generators of the layers expected to read x, ``name`` included. Takes: x …×width.
        """
        taken = self._take(name, x, readers[name])
        if taken is not None:
            return taken
        self._reading = None
        if len(readers) == 1:
            reread, (code,) = read_codes(x, [readers[name].psi])
            return reread, code
        return self._read_all(name, x, readers)

    def _read_all(self, name: str, x: Tensor, readers: Mapping[str, GeneratorWeights]) -> tuple[Tensor, Tensor]:
        psis: Sequence[Tensor] = [weights.psi for weights in readers.values()]
        reread, codes = read_codes(x, psis)
        found = {reader: (psi, psi._version, code) for reader, psi, code in zip(readers, psis, codes, strict=True)}  # noqa: SLF001 # torch's only name for it
        _, _, code = found.pop(name)
        self._reading = _Reading(x=x, version=x._version, with_gradient=torch.is_grad_enabled(), reread=reread, codes=found)  # noqa: SLF001
        return reread, code

    def _take(self, name: str, x: Tensor, weights: GeneratorWeights) -> tuple[Tensor, Tensor] | None:
        reading = self._reading
        if reading is None or reading.x is not x or reading.version != x._version or reading.with_gradient != torch.is_grad_enabled():  # noqa: SLF001
            return None
        psi, version, code = reading.codes.pop(name, (None, 0, None))
        if psi is not weights.psi or psi._version != version or code is None:  # noqa: SLF001
            return None
        if not reading.codes:
            self._reading = None
        return reading.reread, code
