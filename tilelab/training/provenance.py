"""Where a model comes from: what was measured and what the user states, never what was said of other data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tilelab.machine.version import __version__
from tilelab.models.encoders import find_weights
from tilelab.spec import METADATA_KEY
from tilelab.training.recipe import BaseRecipe

DIGEST = "digest"
"""Key of a recipe's provenance that says which training data the rest of it is true of."""


def stated(recipe: BaseRecipe, digest: str) -> dict[str, str]:
    """The recipe's provenance as far as it is about data of this digest; one without a digest is the user's word."""
    about = recipe.provenance.get(DIGEST, digest)
    return {key: text for key, text in recipe.provenance.items() if key != DIGEST} if about == digest else {}


def describe_training(
    recipe: BaseRecipe, root: Path, trained_on: dict[str, Any], validated_on: dict[str, Any]
) -> dict[str, Any]:
    """What a model's description says of its making, beside scores and sizes."""
    record: dict[str, Any] = {
        **recipe.provenance,
        "recipe": recipe.name,
        "tilelab": __version__,
        "trained_on": trained_on,
        "validated_on": validated_on,
    }
    network: Any = recipe.network  # type: ignore[attr-defined]  # both kinds of recipe have one
    if start := getattr(network, "checkpoint", ""):
        record["began_with"] = read_ancestor(root / start)
    elif network.weights:
        record["began_with"] = read_ancestor(find_weights(network.weights, network.encoder, root))
    return record


def read_ancestor(path: Path) -> dict[str, Any]:
    """What a file of weights is and what it says of its own making; it is what a training begins with.

    The file exists: its weights have been loaded.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    ancestor: dict[str, Any] = {"file": path.name, "digest": f"sha256:{digest}"}
    if path.suffix != ".safetensors":
        return ancestor
    with path.open("rb") as file:  # eight bytes of length, then JSON
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    told = json.loads(header.get("__metadata__", {}).get(METADATA_KEY, "{}"))
    recipe, spec = told.get("recipe", {}), told.get("spec", {})
    ancestor |= {"name": spec.get("name") or recipe.get("name"), "steps": told.get("step")}
    ancestor |= {"training": spec.get("training") or told.get("trained_on") or recipe.get("provenance")}
    return {key: value for key, value in ancestor.items() if value}
