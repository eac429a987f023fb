"""nnU-Net's `nnUNetPredictor.predict_sliding_window_return_logits` on a given network."""

import os
from typing import Any

from benchmarks.peers.common import PeerJob, Stopwatch, load_unet, main, normalize, read_image

# nnU-Net asks for these folders when it is imported; prediction from arrays does not use them.
for _folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.setdefault(_folder, os.devnull)


def predict(job: PeerJob, clock: Stopwatch) -> Any:
    """Logits ``(classes, y, x)`` of the job's image."""
    with clock.phase("load"):
        import torch
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        network = load_unet(job)
        architecture = {"network_class_name": "given", "arch_kwargs": {}, "_kw_requires_import": []}
        plan = {"patch_size": [job.tile, job.tile], "batch_size": job.batch, "architecture": architecture}
        plans = PlansManager({"dataset_name": "benchmark", "plans_name": "benchmark", "configurations": {"2d": plan}})
        predictor = nnUNetPredictor(
            tile_step_size=1 - job.overlap / job.tile,
            use_gaussian=True,
            use_mirroring=False,
            perform_everything_on_device=False,
            device=torch.device("cpu"),
            allow_tqdm=False,
        )
        labels = {"background": 0} | {f"class {k}": k for k in range(1, job.classes)}
        predictor.manual_initialization(
            network, plans, plans.get_configuration("2d"), None, {"labels": labels}, "nnUNetTrainer", None
        )
        clock.loaded()
    with clock.phase("read"):
        image = torch.from_numpy(normalize(job, read_image(job)))[None, None]  # (channels, z, y, x)
    with clock.phase("infer"):
        logits = predictor.predict_sliding_window_return_logits(image)
    return logits[:, 0].numpy()


if __name__ == "__main__":
    main(predict, ("nnunetv2", "torch"), "predict_sliding_window_return_logits, Gaussian, no mirroring")
