"""Which of a network's inputs and outputs are used, in which order their axes lie, and what each output is kept as."""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from tilelab.assumptions import Assumption
from tilelab.engines.files.model_file import ModelFile, Port
from tilelab.errors import ModelError
from tilelab.spec import Output, OutputKind
from tilelab.text import size_text

FLAG = "--model-output"
_MOST_SCALE = 32  # of an output against its input
_SEMANTIC = re.compile(
    r"(^|[^a-z])(sem|semantic|seg|segmentation|mask|class|classes|logit|logits|label|labels)([^a-z]|$)"
)
_SIDE = re.compile(r"aux|deep|side|(^|[^a-z])ds([^a-z]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Ports:
    """What is fed and what is taken of a network.

    Attributes:
        source: the input.
        targets: the outputs, that of the classes first.
        kinds: of each; None for logits or probabilities, whichever it turns out to be.
        assumptions: what had to be guessed.
    """

    source: Port
    targets: tuple[Port, ...]
    kinds: tuple[OutputKind | None, ...]
    assumptions: tuple[Assumption, ...] = ()


def choose_ports(
    file: ModelFile,
    names: str | None = None,
    kinds: OutputKind | tuple[OutputKind, ...] | None = None,
    axes: str | None = None,
) -> Ports:
    """The one input and the outputs that tilelab uses.

    Args:
        file: the model.
        names: of the outputs that are asked for, with commas between; None for what the model says, or its only one.
        kinds: what they hold, one for each; or one for the first, the others being maps.
        axes: of a tile, where they are known.

    Raises:
        ModelError: the network has no or several inputs, no output, or it is not clear which are meant.
    """
    if len(file.inputs) != 1:
        found = ", ".join(port.name for port in file.inputs)
        raise ModelError(
            f"{file.path} has {len(file.inputs)} inputs ({found}): tilelab feeds exactly one"
            if file.inputs
            else f"{file.path} has no input: tilelab feeds exactly one"
        )
    spec = file.spec
    axes = axes or (spec.axes if spec is not None else None)
    rank = len(axes) if axes is not None else 3 if len(file.inputs[0].shape) == 5 else 2
    source = file.inputs[0].arranged(rank)
    chosen, assumptions = _choose(file, names)
    told: dict[str, OutputKind | None] = {}
    if spec is not None and (names is None or len(spec.outputs) > 1):
        told = {output.name or chosen[0].name: output.kind for output in spec.outputs}
    pairs = [(port, told.get(port.name, None if i == 0 else "map")) for i, port in enumerate(chosen)]
    if kinds is not None:
        pairs = _as_said(file, chosen, kinds)
    first, kind = pairs[0]
    ending = file.endings.get(first.name)
    if kind is None and ending is not None and ending.kind == "labels":
        pairs[0] = (first, "labels")
    pairs.sort(key=lambda pair: pair[1] == "map")  # stable: that of the classes comes first
    targets = tuple(port.arranged(rank, source) for port, _ in pairs)
    return Ports(source, targets, tuple(kind for _, kind in pairs), assumptions)


def _as_said(
    file: ModelFile, chosen: list[Port], kinds: OutputKind | tuple[OutputKind, ...]
) -> list[tuple[Port, OutputKind | None]]:
    """The outputs with what the user says of them."""
    said: list[OutputKind] = [kinds] if isinstance(kinds, str) else list(kinds)
    if len(said) == 1:
        said += ["map" for _ in chosen[1:]]
    if len(said) != len(chosen):
        raise ModelError(
            f"--output-is says what {len(said)} outputs are, but {len(chosen)} of {file.path} are used: one for each"
        )
    if sum(kind != "map" for kind in said) > 1:
        raise ModelError(f"--output-is {','.join(said)}: one output can be of the classes, the others are maps")
    return [(port, kind) for port, kind in zip(chosen, said, strict=True)]


def _choose(file: ModelFile, names: str | None) -> tuple[list[Port], tuple[Assumption, ...]]:
    known = {port.name: port for port in file.outputs}
    every = ", ".join(known)
    if not known:
        raise ModelError(f"{file.path} has no output: export it again with its logits as output")
    spec = file.spec
    if names is None and spec is not None and any(output.name for output in spec.outputs):
        names = ",".join(output.name for output in spec.outputs)
    if names is not None:
        wanted = [names] if names in known else [name.strip() for name in names.split(",")]
        if unknown := [name for name in wanted if name not in known]:
            raise ModelError(f"{file.path} has no output {unknown[0]!r}: choose one of {every}")
        if len(set(wanted)) < len(wanted):
            raise ModelError(f"{FLAG} {names} names an output twice: name each once")
        return [known[name] for name in wanted], ()
    if len(known) == 1:
        return list(known.values()), ()
    if (evident := _evident(file)) is None:
        raise ModelError(
            f"{file.path} has {len(known)} outputs ({every}): choose one with {FLAG} NAME, or several with commas "
            "between (the first has the classes, the others are kept as maps)"
        )
    chosen, taken, because = evident
    if spec is not None:  # it describes one output and does not name it
        chosen, taken = chosen[:1], chosen[0].name
    return chosen, (Assumption(what=f"the outputs of {file.path.name}", taken=taken, because=because, flag=FLAG),)


def _evident(file: ModelFile) -> tuple[list[Port], str, str] | None:
    """The outputs that are meant, what they are taken for and why; None where that is not evident."""
    first, *others = file.outputs
    same = all(port.shape[1:2] == first.shape[1:2] and port.dtype == first.dtype for port in others)
    numbered = {re.sub(r"\d+", "#", port.name) for port in file.outputs} == {re.sub(r"\d+", "#", first.name)}
    if same and ((numbered and "#" in re.sub(r"\d+", "#", first.name)) or all(_SIDE.search(p.name) for p in others)):
        rest = ", ".join(port.name for port in others)
        return [first], f"{first.name}, without {rest}", "they are alike, as those of deep supervision are"
    named = [port for port in file.outputs if _SEMANTIC.search(port.name.lower())]
    if len(named) != 1:
        return None
    maps = [port for port in file.outputs if port is not named[0]]
    taken = f"the classes from {named[0].name}, {', '.join(port.name for port in maps)} as maps"
    return [named[0], *maps], taken, "its name says so"


def place_output(output: Output, tile: tuple[int, ...], extent: tuple[int, ...]) -> Output:
    """`output` with the scale and the halo that its `extent` for a `tile` shows.

    An output whose extent is a power of two times smaller or larger is taken for one of that scale, any other that is
    smaller for one of a network that does not pad.

    Raises:
        ModelError: it shows neither.
    """
    if len(extent) != len(tile):
        raise ModelError(f"has {len(extent)} spatial axes, a tile has {len(tile)}: say --model-axes")
    if extent == tile:
        return output
    scale, halo = [], []
    for n, e in zip(tile, extent, strict=True):
        whole = n % e == 0 or e % n == 0
        ratio = n // e if n >= e else e // n
        if whole and ratio & (ratio - 1) == 0 and ratio <= _MOST_SCALE:
            scale.append(e / n)
            halo.append(0)
        elif e < n:
            scale.append(1.0)
            halo.append(-((e - n) // 2))
        else:
            raise ModelError(
                f"is {size_text(extent)} px for a tile of {size_text(tile)}: tilelab takes outputs that are smaller, "
                "or 2, 4 ... times as large; resize it in the model"
            )
    return msgspec.structs.replace(
        output,
        scale=tuple(scale) if set(scale) != {1.0} else (),
        halo=tuple(halo) if any(halo) else (),
    )
