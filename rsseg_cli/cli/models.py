"""`rsseg models`: list, show and export models, calibrate them, import checkpoints, join several."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rsseg_cli.cli import options as opt
from rsseg_cli.cli.calibrate import calibrate_command
from rsseg_cli.cli.from_settings import Options, from_settings
from rsseg_cli.cli.join import average_command, combine_command
from rsseg_cli.config import check_bounds, option
from rsseg_cli.errors import UsageError

if TYPE_CHECKING:
    from rsseg_cli.weights import ClassSpec, ModelSpec

app = typer.Typer(
    help="List, show, calibrate, import, export, average and combine trained models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

app.command("calibrate")(calibrate_command)
app.command("average")(average_command)
app.command("combine")(combine_command)


@app.command("list")
def list_command(as_json: opt.Json = False) -> None:
    """List the bundled models, with their scores by place and their earlier versions.

    Scores are IoU of one class or the mean over classes, of what a place's labels tell apart; a star marks
    places that the model was trained on.

    Example: rsseg models list
    """
    from rsseg_cli.weights import read_spec, registry

    specs = [read_spec(name) for name in registry.list_models()]
    if as_json:
        keys = ("name", "description", "classes", "bands", "gsd_m", "license", "is_refiner")
        opt.echo_json(
            [
                {key: getattr(spec, key) for key in keys}
                | {"classes": spec.class_names, "places": _places(spec), "versions": _versions(spec.name)}
                for spec in specs
            ]
        )
        return
    width = max((len(spec.name) for spec in specs), default=0)
    for spec in specs:
        typer.echo(f"{spec.name:<{width}}  {_resolution(spec)}  {', '.join(spec.class_names)}")
    for spec in specs:
        for line in _known(spec):
            typer.echo(f"{spec.name}: {line}")
    if not specs:
        typer.echo("no models are bundled; pass a model file's path to --model")


@app.command("show")
def show_command(
    model: opt.ModelFile,
    as_json: opt.Json = False,
    stac: Annotated[
        bool, typer.Option("--stac", help="Print a STAC Item, with the Machine Learning Model extension.")
    ] = False,
) -> None:
    """Show a model's inputs, classes, training and scores.

    Example: rsseg models show landcover
    """
    from rsseg_cli.weights import read_spec, registry

    spec, path = read_spec(model), registry.model_file(model)
    file = {"path": str(path), "bytes": path.stat().st_size, "sha256": registry.file_sha256(path)}
    if stac:
        opt.echo_json(spec.stac_item(path, str(file["sha256"])))
        return
    if as_json:
        tiles = {kind: len(item.prototypes) for kind, item in spec.training_tiles.items()}
        opt.echo_json({**json.loads(spec.to_json()), "training_tiles": tiles, "file": file})
        return
    for line in [*_card(spec), *_known(spec)]:
        typer.echo(line)
    typer.echo(f"file         {path}, {path.stat().st_size / 1e6:.1f} MB")
    typer.echo(f"sha256       {file['sha256']}")


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """What a released checkpoint does not say of its network."""

    # fmt: off
    arch: Literal["bicor-seg", "idgbr"] = option("bicor-seg", "The network.")
    topk_ratio: float | None = option(
        None, "bicor-seg: share of pixels that update a class, 0 to 1: 0.02 for LoveDA, 1 for ISPRS."
    )
    layers: int | None = option(
        None, "bicor-seg: HBIS layers the checkpoint must have. Default: what it has."
    )
    sd: Path | None = option(
        None, "idgbr: folder of Stable Diffusion 1.5. Default: RELEASED.", metavar="DIR"
    )
    prompt_embedding: Path | None = option(
        None, "idgbr: embedding of the empty prompt, .safetensors. Default: from DIR/text_encoder.",
        metavar="FILE",
    )
    colours: str = option("", "Colours of the classes: '#d64541,#dec3a4,...'. Default: a palette.")
    bands: str = option(
        "red,green,blue", "Bands in the order of the network's inputs, as nir,red,green for Vaihingen."
    )
    gsd: float | None = option(
        None, "Ground resolution of the training data, m a pixel. Default: run scenes as they are.",
        above=0, below=1e5, needs="metres a pixel above 0",
    )
    name: str = option("", "The model's name. Default: the output's name.")
    dtype: Literal["float32", "float16"] | None = option(
        None, "Stored type; float16 halves the file, rounds weights. Default: float16 for idgbr."
    )
    # fmt: on

    def __post_init__(self) -> None:
        check_bounds(self)
        unused = {"bicor-seg": ("sd", "prompt_embedding"), "idgbr": ("topk_ratio", "layers")}[self.arch]
        for name in unused:
            if getattr(self, name) is not None:
                other = "idgbr" if self.arch == "bicor-seg" else "bicor-seg"
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag} belongs to --arch {other}, not to {self.arch}")
        if self.arch == "bicor-seg" and (self.topk_ratio is None or not 0 < self.topk_ratio <= 1):
            raise UsageError(f"--topk-ratio {self.topk_ratio}: needs 0 < ratio <= 1")


@app.command("import")
@from_settings
def import_command(
    checkpoint: Annotated[
        Path,
        opt.argument(
            "RELEASED",
            "A Lightning checkpoint of BiCoR-Seg, a folder of IDGBR, or of Stable Diffusion 1.5 alone.",
        ),
    ],
    output: opt.ModelOutput,
    classes: Annotated[str, typer.Option(help="Class names in the order of the network's outputs: a,b,c.")],
    *,
    given: Annotated[ImportSettings, Options()],
    overwrite: opt.Overwrite = False,
) -> None:
    """Turn a released checkpoint into a model file.

    The checkpoint is of the published BiCoR-Seg or IDGBR program. Stable Diffusion 1.5 alone gives an IDGBR
    that is still to be trained. Pickles that hold more than tensors and plain values are refused.

    Example: rsseg models import vaihingen.ckpt --layers 2 --topk-ratio 1 --bands nir,red,green --gsd 0.09
    --classes surface,building,low,tree,car,clutter -o vaihingen.safetensors
    """
    from rsseg_cli.weights import ModelSpec, registry, save_model

    class_list, band_names = _classes(classes, given.colours), _names("--bands", given.bands)
    registry.check_target(output, overwrite)
    if given.arch == "bicor-seg":
        network, about = _read_bicor_seg(checkpoint, given.topk_ratio or 1.0, given.layers)
    else:
        sd = given.sd or checkpoint
        network, about = _read_idgbr(checkpoint, sd, len(class_list), given.prompt_embedding)
    if len(class_list) != network.config.classes or len(band_names) != network.config.in_channels:
        raise UsageError(
            f"{checkpoint}: {network.config.classes} classes and {network.config.in_channels} bands; "
            f"--classes names {len(class_list)}, --bands {len(band_names)}"
        )
    spec = ModelSpec(
        name=given.name or output.stem,
        architecture=given.arch,
        classes=class_list,
        bands=band_names,
        network=asdict(network.config),
        gsd_m=given.gsd,
        # the released training scales images by 0.75 to 1.5
        gsd_range_m=None if given.gsd is None else (given.gsd / 1.5, given.gsd / 0.75),
        **about,
    )
    stored = given.dtype or ("float16" if given.arch == "idgbr" else "float32")
    save_model(output, network, spec, dtype=stored, overwrite=overwrite)
    millions = sum(item.numel() for item in network.parameters()) / 1e6
    typer.echo(f"{output}: {given.arch}, {millions:.1f} M parameters, {len(class_list)} classes")


def _read_bicor_seg(checkpoint: Path, topk_ratio: float, layers: int | None) -> tuple[Any, dict[str, Any]]:
    """The network, and fields of its spec."""
    from rsseg_cli.weights import released

    description = f"Imported from {checkpoint.name}, a checkpoint of the released BiCoR-Seg program."
    network = released.read_bicor_seg(checkpoint, topk_ratio=topk_ratio, layers=layers)
    return network, {"description": description}


def _read_idgbr(
    checkpoint: Path, stable_diffusion: Path, classes: int, prompt: Path | None
) -> tuple[Any, dict[str, Any]]:
    from rsseg_cli.weights import released

    if released.is_idgbr(checkpoint):
        # The released training gives the codec ImageNet-normalised pixels (ModelSpec's default), so its
        # denoiser has seen no others.
        description = f"Imported from {checkpoint.name}, a checkpoint of the released IDGBR program."
        network = released.read_idgbr(checkpoint, stable_diffusion, classes, prompt)
        return network, {"description": description, "refinement": {"steps": network.default_steps}}
    network = released.start_idgbr(stable_diffusion, classes, prompt)
    half = (0.5,) * 3  # mean and deviation that scale pixels to the codec's [-1, 1]
    return network, {
        "description": f"Stable Diffusion 1.5 from {stable_diffusion.name}, to be trained.",
        "refinement": {"steps": network.default_steps},
        "mean": half,
        "std": half,
    }


@app.command("export")
def export_command(
    model: opt.ModelFile,
    output: Annotated[
        Path,
        opt.output(
            "FILE.onnx|.xml|.pt2",
            "ONNX, OpenVINO (with FILE.bin beside it), or an exported program of PyTorch.",
        ),
    ],
    overwrite: opt.Overwrite = False,
    as_json: opt.Json = False,
) -> None:
    """Write a network as a file that other programs run.

    In goes an image from 0 to 1, (batch, bands, height, width), height and width multiples of 32 px; out come
    probabilities of the classes. Normalisation and softmax are inside; batch and size are free, but for .pt2,
    which takes tiles of 512 px. The file is run beside the network, and not written if it differs. An ONNX
    file says of itself what the plug-in Deepness of QGIS and `rsseg predict --model FILE.onnx` need.

    Example: rsseg models export landcover -o landcover.onnx
    """  # fmt: skip
    from rsseg_cli.inference import export
    from rsseg_cli.weights import load_model, read_spec

    export.check_export(output, read_spec(model), overwrite=overwrite)
    exported = export.export_model(load_model(model), output, overwrite=overwrite)
    opt.show(exported, str, as_json=as_json)


def _names(option: str, text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise UsageError(f"{option} {text!r}: needs different names, separated by commas")
    return names


def _classes(classes: str, colours: str) -> tuple[ClassSpec, ...]:
    from rsseg_cli.weights import ClassSpec

    names = _names("--classes", classes)
    if not colours:
        return ClassSpec.from_names(names)
    parts = [part.strip().removeprefix("#") for part in colours.split(",")]
    if len(parts) != len(names):
        raise UsageError(f"--colours: {len(parts)} colours for {len(names)} classes")
    try:
        triples = [bytes.fromhex(part) for part in parts]
    except ValueError:
        triples = [b""]
    if any(len(triple) != 3 for triple in triples):
        raise UsageError(f"--colours {colours!r}: needs colours as #rrggbb, separated by commas")
    return tuple(
        ClassSpec(name, (red, green, blue)) for name, (red, green, blue) in zip(names, triples, strict=True)
    )


def _versions(name: str) -> list[str]:
    from rsseg_cli.weights import registry

    return [version for version in registry.earlier_versions() if version.startswith(f"{name}@")]


def _places(spec: ModelSpec) -> dict[str, Any]:
    """Scores by place, as `benchmarks/places.py` writes them into a model file."""
    places = spec.scores.get("places")
    known = places.items() if isinstance(places, dict) else ()
    return {name: item for name, item in known if isinstance(item, dict) and _are_numbers(item, "score")}


def _are_numbers(values: Any, *keys: str) -> bool:
    """Whether a file's values are there, and are what they should be."""
    return isinstance(values, dict) and all(isinstance(values.get(key), int | float) for key in keys)


def _known(spec: ModelSpec) -> list[str]:
    """Word scores by place, how confidences were calibrated, and earlier versions."""
    lines = []
    if places := _places(spec):
        scores = [
            f"{name} {item['score']:.2f}{'*' * bool(item.get('trained'))}" for name, item in places.items()
        ]
        lines.append(f"by place: {', '.join(scores)}")
    known = spec.scores.get("calibration")
    if known and _are_numbers(known, "ece_before", "ece_after"):
        lines.append(
            f"confidence: expected calibration error {known['ece_after']:.3f} ({known['ece_before']:.3f} "
            f"without temperature {spec.temperature:.3g})"
        )
    if versions := _versions(spec.name):
        lines.append(f"earlier versions, to repeat old runs: {', '.join(versions)}")
    return lines


def _resolution(spec: ModelSpec) -> str:
    if spec.gsd_m is None:
        return "any resolution"
    if spec.gsd_range_m is None:
        return f"{spec.gsd_m:g} m"
    return f"{spec.gsd_m:g} m ({spec.gsd_range_m[0]:.2g} to {spec.gsd_range_m[1]:.2g} m)"


def _card(spec: ModelSpec) -> list[str]:
    colours = ["#{:02x}{:02x}{:02x}".format(*item.colour) for item in spec.classes]
    sizes = ", ".join(f"{key} {value}" for key, value in spec.network.items())
    lines = [
        spec.name,
        f"network      {spec.architecture}: {sizes}",
        f"bands        {', '.join(spec.bands)}",
        f"resolution   {_resolution(spec)}",
        "classes      "
        + ", ".join(
            f"{index} {item.name} {colour}"
            for index, (item, colour) in enumerate(zip(spec.classes, colours, strict=True))
        ),
    ]
    if spec.description:
        lines.insert(1, spec.description)
    ranges = ", ".join(f"{low:g} to {high:g}" for low, high in spec.stretch)
    optional = (
        ("stretch", ranges),
        ("licence", spec.license),
        ("data", spec.data),
        ("refiner", spec.refiner),
    )
    lines += [f"{title:<12} {value}" for title, value in optional if value]
    for title, values in (("scores", spec.scores), ("training", spec.training)):
        if values:
            lines += [title, *_tree(values)]
    return lines


def _tree(values: dict[str, Any], depth: int = 1) -> list[str]:
    lines = []
    for key, value in values.items():
        start = f"{'  ' * depth}{key}"
        if isinstance(value, dict):
            lines += [start, *_tree(value, depth + 1)]
        else:
            lines.append(f"{start}: {value:.3f}" if isinstance(value, float) else f"{start}: {value}")
    return lines
