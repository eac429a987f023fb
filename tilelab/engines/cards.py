"""`tilelab.models`: the models that come along, and what each says of itself."""

from __future__ import annotations

from html import escape

from tilelab.engines.bundled import bundled_models
from tilelab.engines.registry import read_spec
from tilelab.spec import ModelSpec


class Models(dict[str, ModelSpec]):
    """Descriptions of models by name; prints as a table."""

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Name, classes, what it was trained on, how well it did on the validation images."""
        rows = []
        for name, spec in self.items():
            history = spec.training
            score = history.get("validation", {}).get("mean_iou")
            classes = ", ".join(known.name for known in spec.classes)
            data = f"{history.get('data', 'not known')}, {history.get('licence', 'licence not known')}"
            found = "" if score is None else f"mean IoU {score:.3f}"
            if spec.confidence is not None and spec.confidence.ece:
                found += f", ECE {spec.confidence.ece[1]:.3f}"
            rows.append((name, classes, data, found))
        return rows

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {classes} ({data}) {score}".rstrip() for name, classes, data, score in self.rows())

    def _repr_html_(self) -> str:
        """For notebooks."""
        lines = ("".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in row) for row in self.rows())
        head = "<tr><th>model</th><th>classes</th><th>trained on</th><th>validation</th></tr>"
        return f"<table>{head}{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def models() -> Models:
    """The bundled models: each name is what `infer` takes, each value what the file says of itself.

    >>> models = tilelab.models()
    >>> [known.name for known in models["superalloy"].classes]
    ['matrix', 'secondary precipitate', 'tertiary precipitate']
    >>> models["axon"].training["licence"]
    'MIT'
    """
    found = Models()
    for name in bundled_models():
        spec = read_spec(name)
        assert spec is not None  # noqa: S101 - every bundled file has a description
        found[name] = spec
    return found
