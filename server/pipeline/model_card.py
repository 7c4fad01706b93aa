"""The model card of a bundle: its README.md, in the form that the Hugging Face hub reads."""

from models.bundle import Bundle, Manifest

PIPELINES = {
    "text": "text-classification",
    "image": "image-classification",
    "segmentation": "image-segmentation",
}
UNKNOWN_LICENCE = "unknown"
SHOWN_CLASSES = 50


def model_card(bundle: Bundle, licence: str | None) -> str:
    """Describe a bundle for people.

    Args:
        bundle: The bundle, complete.
        licence: An identifier of the hub, such as `apache-2.0`; None: unknown.

    Returns:
        Markdown with a header of YAML.
    """
    manifest = bundle.manifest
    certified = manifest.training.get("certification_size") or 0
    head = "\n".join(
        [
            "---",
            f"license: {licence or UNKNOWN_LICENCE}",
            "library_name: eenet-serve",
            f"pipeline_tag: {PIPELINES[manifest.task]}",
            "tags: [multi-exit, early-exit, adaptive-inference]",
            "---",
        ]
    )
    held_out = (
        f"{certified} rows were held out to certify this on."
        if certified
        else "No rows were held out to certify this on, so a server runs every request to the last "
        "exit until it has audited enough of them."
    )
    parts = [
        head,
        f"# {manifest.name}",
        f"A network of {manifest.num_exits} exits for EENet Serve. Requests that are easy leave "
        f"at an early exit.",
        _origin(manifest),
        f"## Classes\n\n{_classes(manifest)}",
        f"## Exits\n\n{_exits(manifest)}",
        f"Latencies are those of the machine that built the bundle, for one {manifest.task}.",
        "## Promise\n\nWithout a budget, a server gives at most 1 % of the requests another answer "
        f"than the last exit (`--max-disagreement`). {held_out}",
        "## Serve it\n\n```sh\neenet serve --bundle FOLDER    # or hf://ORG/NAME@REVISION\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _origin(manifest: Manifest) -> str:
    start, dataset = manifest.training.get("start"), manifest.training.get("dataset")
    made = [f"made from `{start}`"] if start else []
    made += [f"calibrated and tested on `{dataset}`"] if dataset else []
    return f"It was {' and '.join(made)}." if made else ""


def _classes(manifest: Manifest) -> str:
    shown = ", ".join(f"`{name}`" for name in manifest.classes[:SHOWN_CLASSES])
    more = len(manifest.classes) - SHOWN_CLASSES
    return f"{len(manifest.classes)}: {shown}" + (f" and {more} more" if more > 0 else "")


def _exits(manifest: Manifest) -> str:
    lines = ["| precision | exit | test accuracy % | latency ms |", "|---|---|---|---|"]
    for precision, entry in manifest.precisions.items():
        if entry.measured is None:
            continue
        pairs = zip(entry.measured.accuracy, entry.measured.latency_ms, strict=True)
        for exit, (share, latency_ms) in enumerate(pairs):
            lines.append(f"| {precision} | {exit} | {100 * share:.2f} | {latency_ms:.3f} |")
    return "\n".join(lines)
