"""KonfAI's `predict_model`: patches with overlap, blended, written slab by slab."""

import os
from pathlib import Path
from typing import Any

from benchmarks.peers.common import PeerJob, Stopwatch, load_unet, main, normalize, read_image


def predict(job: PeerJob, clock: Stopwatch) -> Any:
    """Logits ``(classes, y, x)`` of the job's image."""
    out = Path(job.out).resolve()
    os.chdir(out)  # KonfAI puts its folders into the current one
    with clock.phase("load"):
        import konfai
        import SimpleITK as sitk  # noqa: N813 - its own convention

        network = load_unet(job)
        clock.loaded()
    with clock.phase("convert"):  # KonfAI reads medical formats: what it reads is written first
        case = out / "Dataset" / "case"
        case.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(normalize(job, read_image(job))[None]), str(case / "EM.mha"))
    with clock.phase("infer"):
        konfai.predict_model(
            network,
            f"{out / 'Dataset'}:mha",
            inputs="EM",
            patch=(1, job.tile, job.tile),
            overlap=job.overlap,
            output=f"{out / 'Prediction'}:mha",
            in_channels=job.channels,
            batch_size=job.batch,
            quiet=True,
            overwrite=True,
        )
    with clock.phase("read back"):
        (found,) = (out / "Prediction").rglob("*.mha")
        logits = sitk.GetArrayFromImage(sitk.ReadImage(str(found)))  # (z, y, x, classes)
    return logits[0].transpose(2, 0, 1)


if __name__ == "__main__":
    main(predict, ("konfai", "torch"), "predict_model, default blending")
