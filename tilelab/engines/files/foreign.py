"""Model files of training frameworks, which hold weights or need their framework: the two lines that convert each."""

from __future__ import annotations

from pathlib import Path

from tilelab.errors import ModelError

_TORCH = (
    "holds weights of PyTorch, without the network they are for; where that is defined, convert it: "
    "net.load_state_dict(torch.load({name!r}, map_location='cpu')); "
    "torch.onnx.export(net.eval(), (torch.zeros(1, C, H, W),), {onnx!r}, external_data=False)"
)
_LIGHTNING = (
    "is a checkpoint of Lightning, whose network is defined elsewhere; convert it there: "
    "net = YourModule.load_from_checkpoint({name!r}); "
    "torch.onnx.export(net.eval(), (torch.zeros(1, C, H, W),), {onnx!r}, external_data=False)"
)
_KERAS = (
    "is a model of Keras; convert it (pip install tf2onnx): model = keras.models.load_model({name!r}, compile=False); "
    "model.export({onnx!r}, format='onnx')"
)
_SAVED = (
    "is a SavedModel of TensorFlow; convert it: pip install tf2onnx; "
    "python -m tf2onnx.convert --saved-model {name} --output {onnx} --inputs-as-nchw INPUT --outputs-as-nchw OUTPUT"
)
_FROZEN = (
    "is a graph of TensorFlow; convert it: pip install tf2onnx; "
    "python -m tf2onnx.convert --graphdef {name} --output {onnx} --inputs INPUT:0 --outputs OUTPUT:0"
)
_SAFETENSORS = (
    "holds weights alone, and is no checkpoint of `tilelab train`; where their network is defined, convert it: "
    "net.load_state_dict(safetensors.torch.load_file({name!r})); "
    "torch.onnx.export(net.eval(), (torch.zeros(1, C, H, W),), {onnx!r}, external_data=False)"
)
_WAYS = {
    **dict.fromkeys((".pth", ".pt", ".tar", ".bin"), _TORCH),
    ".ckpt": _LIGHTNING,
    **dict.fromkeys((".h5", ".hdf5", ".keras"), _KERAS),
    ".pb": _FROZEN,
    ".safetensors": _SAFETENSORS,
}


def foreign_model(path: Path, known: tuple[str, ...]) -> ModelError:
    """The error for something that is no model file of ours, with the way to one where there is one.

    Nothing of the file is read: pickles run what they hold.

    Args:
        path: what was given.
        known: suffixes of the files that can be read.
    """
    way = _WAYS.get(path.suffix.lower())
    if path.is_dir():
        way = _SAVED if (path / "saved_model.pb").is_file() else None
        inside = sorted(file.name for file in path.iterdir() if file.suffix.lower() in known)
        if way is None:
            hint = f"give {path / inside[0]}" if inside else f"give the {' or '.join(known[:2])} inside it"
            return ModelError(f"{path} is a folder, not a model file: {hint}")
    if way is None:
        return ModelError(f"{path} is of an unknown format: tilelab reads {', '.join(known)} models")
    return ModelError(f"{path} {way.format(name=path.name, onnx=path.stem + '.onnx')}")
