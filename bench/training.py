"""What `vemray train` makes of a few painted planes, beside a U-Net of MONAI's trained the obvious way for the same time on the same planes.

python -m bench.training OUT --data FOLDER --minutes 3 --seeds 1 2 3

FOLDER holds vnc_sstem/vnc_stack1.npz (Gerhard et al. 2013): three of its planes 0 to 13 are painted, 40 per cent of each; planes 15 to 19 are read for the
score alone. Prints Dice of mitochondria at probability 0.5 and at the threshold that the validation region chose (MONAI's: 0.5)."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import zoom

from vemray.geometry import Box, Spacing
from vemray.models.files import load
from vemray.store.volume import create
from vemray.training.recipe import TrainRecipe, run, sources_of
from vemray.training.source import Source, painted

PLANES, SHARE, TEST = (2, 7, 12), 0.4, range(15, 20)
SPACING = Spacing(50, 4.6, 4.6)


def sparse(truth: np.ndarray, planes=PLANES, share: float = SHARE, tile: int = 128, seed: int = 0) -> dict[int, np.ndarray]:
    """Planes as a person paints them who goes over some squares of each: 0 unlabelled, 1 background, 2 mitochondria."""
    rng, out = np.random.default_rng(seed), {}
    for z in planes:
        labels = np.where(truth[z], 2, 1).astype(np.uint8)
        rows, cols = (-(-n // tile) for n in labels.shape)
        painted = np.zeros(rows * cols, bool)
        painted[rng.permutation(rows * cols)[: round(share * rows * cols)]] = True
        labels[~np.kron(painted.reshape(rows, cols), np.ones((tile, tile), bool))[: labels.shape[0], : labels.shape[1]]] = 0
        out[z] = labels
    return out


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * np.count_nonzero(a & b) / max(1, np.count_nonzero(a) + np.count_nonzero(b)))


def ours(image: np.ndarray, labels: dict[int, np.ndarray], truth: np.ndarray, out: Path, minutes: float, seed: int, threads: int, more: dict) -> dict:
    """As a user trains: an OME-Zarr volume, painted planes as files, defaults."""
    import tifffile

    volume, planes = out / "em.zarr", out / "planes"
    if not volume.exists():
        made = create(str(volume), image.shape, "uint8", SPACING, "image")
        made.write(made.box, image)
        planes.mkdir()
        for z, plane in labels.items():
            tifffile.imwrite(planes / f"plane_{z:04d}.tif", plane)
    recipe = TrainRecipe(
        vemray=1, out=str(out / f"vemray-{seed}.vemray"), classes=["background", "mitochondria"], volumes=[{"volume": str(volume), "planes": str(planes)}],
        settings={"steps": 100_000, "checks": 2500, "minutes": minutes, "seed": seed, "threads": threads, **more},
    )  # fmt: skip
    (result,) = run(recipe, lambda e: sys.stderr.write(f"{e}\n"), overwrite=True)
    (source,), model = sources_of(recipe), load(recipe.out)
    c, (_, ny, nx) = model.facts.context, source.shape
    p = np.stack([model.predict(source.image(Box((z - c, 0, 0), (z + c + 1, ny, nx)))[None])[0, 1] for z in TEST])
    p = zoom(p, [1, *(n / m for n, m in zip(image.shape[1:], p.shape[1:]))], order=1, grid_mode=True, mode="nearest")  # as the operator upsample
    at = result.thresholds["mitochondria"][0]
    return {
        "steps": result.steps, "dice at 0.5": dice(p > 0.5, truth[list(TEST)]), "dice at the threshold": dice(p > at, truth[list(TEST)]), "threshold": at,
    }  # fmt: skip


def theirs(source: Source, labels: dict[int, np.ndarray], truth: np.ndarray, minutes: float, seed: int, threads: int) -> dict:
    """monai.networks.nets.UNet and DiceCELoss with what its tutorials use: balanced crops, flips, quarter turns, Adam. What is not painted is left out
    of the loss, as somebody would do who knows that it is unknown."""
    import torch
    from monai.inferers import sliding_window_inference
    from monai.losses import DiceLoss
    from monai.networks.nets import UNet
    from monai.transforms import Compose, RandCropByLabelClassesd, RandFlipd, RandRotate90d, RandScaleIntensityd, RandShiftIntensityd
    from monai.utils import set_determinism

    set_determinism(seed)
    torch.set_num_threads(threads)
    network = UNet(2, 1, 2, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2)
    keys = ["image", "label"]
    cut = Compose(
        [
            RandCropByLabelClassesd(keys, "label", spatial_size=(128, 128), ratios=[0, 1, 1], num_classes=3, num_samples=2),
            RandFlipd(keys, 0.5, 0), RandFlipd(keys, 0.5, 1), RandRotate90d(keys, 0.5, 3),
            RandScaleIntensityd("image", 0.1, 1.0), RandShiftIntensityd("image", 0.1, 1.0),
        ]
    )  # fmt: skip
    cut.set_random_state(seed)
    planes = [
        {"image": source.image(Box((z, 0, 0), (z + 1, *source.shape[1:]))), "label": plane[None].astype(np.int64)} for z, plane in labels.items()
    ]
    optimiser, overlap = torch.optim.Adam(network.parameters(), 1e-3), DiceLoss(softmax=True, batch=True)
    start, steps = time.time(), 0
    while time.time() - start < 60 * minutes:
        crops = [c for p in planes for c in cut(p)]  # six, as many as vemray's
        x, y = (torch.stack([torch.as_tensor(np.asarray(c[k])) for c in crops]) for k in keys)
        network.train()
        scores = network(x.float())
        known = y.flatten() > 0
        flat, wanted = scores.movedim(1, -1).reshape(-1, 2)[known], (y.flatten()[known] - 1).long()
        hot = torch.nn.functional.one_hot(wanted, 2).float()
        loss = torch.nn.functional.cross_entropy(flat, wanted) + overlap(flat.T[None], hot.T[None])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
    network.eval()
    with torch.inference_mode():
        found = [
            sliding_window_inference(torch.as_tensor(source.image(Box((z, 0, 0), (z + 1, *source.shape[1:])))[None]), (256, 256), 4, network, 0.25)
            for z in TEST
        ]
        p = torch.cat(found).softmax(1)[:, 1].numpy()
    return {"steps": steps, "dice at 0.5": dice(p > 0.5, truth[list(TEST)])}


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__.splitlines()[0])
    p.add_argument("out", type=Path)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--minutes", type=float, default=3.0)
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--set", default="{}", help="settings of vemray's training, as JSON")
    p.add_argument("--only", choices=["vemray", "monai"], default=None)
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    data = np.load(a.data / "vnc_sstem" / "vnc_stack1.npz")
    truth = data["mito_instances"] > 0
    labels = sparse(truth)
    rows = []
    for seed in a.seeds:
        source = painted(data["image"], labels, SPACING, name="vnc")
        if a.only != "monai":
            rows.append({"of": "vemray", "seed": seed, **ours(data["image"], labels, truth, a.out, a.minutes, seed, a.threads, json.loads(a.set))})
            sys.stdout.write(json.dumps(rows[-1]) + "\n")
        if a.only != "vemray":
            rows.append({"of": "monai", "seed": seed, **theirs(source, labels, truth, a.minutes, seed, a.threads)})
            sys.stdout.write(json.dumps(rows[-1]) + "\n")
    for of in ("vemray", "monai"):
        for key in ("dice at 0.5", "dice at the threshold"):
            found = [r[key] for r in rows if r["of"] == of and key in r]
            if found:
                sys.stdout.write(f"{of}, {key}: mean {np.mean(found):.3f} ({', '.join(f'{v:.3f}' for v in found)})\n")


if __name__ == "__main__":
    main()
