"""Layers that read one input read it once: q, k and v of an attention block, gate and up of an MLP."""

from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor

from wegeft.method.edit import edited_input, read_codes
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


class Reading:
    """One input and what was made of it: a code a generator, and one edited input for a generator that several readers share."""

    def __init__(self, x: Tensor, readers: Mapping[str, GeneratorWeights]) -> None:
        self.source = x
        self.version = _version(x)
        self.expected = set(readers)
        generators = {id(generator): generator for generator in readers.values()}
        self.x, codes = read_codes(x, [generator.psi for generator in generators.values()])
        self.made = {
            key: (generator.psi, _version(generator.psi), code) for (key, generator), code in zip(generators.items(), codes, strict=True)
        }
        counts = Counter(id(generator) for generator in readers.values())
        self.shared = {key for key, count in counts.items() if count > 1}
        self.edited: dict[int, Tensor] = {}

    def is_for(self, x: Tensor, generator: GeneratorWeights) -> bool:
        """Say whether this reading is of that very tensor, unchanged since, with that generator's very ψ, unchanged since."""
        psi, version, _ = self.made.get(id(generator), (None, 0, None))
        return self.source is x and self.version == _version(x) and psi is generator.psi and version == _version(psi)

    def code(self, generator: GeneratorWeights) -> Tensor:
        """Return ``x ψᵀ``, tokens×rank."""
        return self.made[id(generator)][2]

    def edited_input(self, generator: GeneratorWeights) -> Tensor | None:
        """Return ``x + s·φ(ψx)``, made once, if several readers share the generator; else None."""
        key = id(generator)
        if key not in self.shared:
            return None
        if key not in self.edited:
            self.edited[key] = edited_input(self.x, self.code(generator), generator.phi, generator.scaling)
        return self.edited[key]


class SharedInput:
    """The last input that several layers read, until all of them have come. One per model; every use is checked."""

    def __init__(self) -> None:
        self._reading: Reading | None = None

    def __reduce__(self) -> tuple[type["SharedInput"], tuple[()]]:
        return SharedInput, ()

    def find(self, name: str, x: Tensor, generator: GeneratorWeights) -> Reading | None:
        """Return the reading of x that an earlier layer made with layer ``name`` in mind, if it did."""
        reading = self._reading
        if reading is None or name not in reading.expected or not reading.is_for(x, generator):
            return None
        reading.expected.discard(name)
        if not reading.expected:
            self._reading = None
        return reading

    def read(self, name: str, x: Tensor, readers: Mapping[str, GeneratorWeights]) -> Reading:
        """Read x for layer ``name`` and for the other ``readers``, which are expected to come with the same x. x: …×width."""
        reading = Reading(x, readers)
        reading.expected.discard(name)
        self._reading = reading if reading.expected else None
        return reading


def _version(tensor: Tensor) -> int:
    return tensor._version  # noqa: SLF001 # torch's only name for how often a tensor was written to
