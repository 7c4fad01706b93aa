from pathlib import Path

from models.bundle import CARD, load_bundle
from server.pipeline.model_card import model_card


def test_the_card_has_header_classes_exits_and_promise(shipped_text_bundle: Path) -> None:
    bundle = load_bundle(shipped_text_bundle)
    card = model_card(bundle, "apache-2.0")
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "pipeline_tag: text-classification" in card
    assert "4: `Business`, `Sci/Tech`, `Sports`, `World`" in card
    assert card.count("| int8 |") == card.count("| float32 |") == 4
    measured = bundle.manifest.precisions["int8"].measured
    assert measured is not None
    assert f"| int8 | 0 | {100 * measured.accuracy[0]:.2f} |" in card
    assert "eenet serve --bundle" in card and "--max-disagreement" in card
    assert "license: unknown" in model_card(bundle, None)


def test_a_build_writes_a_card_that_may_be_edited(text_bundle: Path) -> None:
    card = text_bundle / CARD
    text = card.read_text()
    assert "# reviews" in text and "No rows were held out" in text
    assert CARD not in load_bundle(text_bundle).manifest.files
    try:
        card.write_text("other words")
        load_bundle(text_bundle)
    finally:
        card.write_text(text)
