import json
from pathlib import Path

import numpy as np
import pytest

from server.pipeline.priors import read_prior

CLASSES = ("ape", "bee", "cat")


def test_the_observed_prior_is_none_and_the_uniform_one_is_even() -> None:
    assert read_prior("observed", CLASSES) is None
    uniform = read_prior("uniform", CLASSES)
    assert uniform is not None and uniform.shares == pytest.approx(np.full(3, 1 / 3))


@pytest.mark.parametrize(
    "text", [json.dumps({"cat": 0.2, "ape": 0.5, "bee": 0.3}), "0.5\n0.3\n0.2\n", "0.5\n 0.3\n0.2"]
)
def test_a_file_gives_shares_by_name_or_by_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "prior"
    file.write_text(text)
    prior = read_prior(str(file), CLASSES)
    assert prior is not None
    assert (prior.classes, prior.shares.tolist()) == (CLASSES, [0.5, 0.3, 0.2])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"ape": 0.5', "is not JSON"),
        ('{"ape": 0.5, "bee": 0.3, "cow": 0.2}', "there is no class 'cow'"),
        ('{"ape": 0.5, "bee": 0.5}', "class 'cat' has no share"),
        ('{"ape": 0.5, "bee": 0.3, "cat": "some"}', "the share of class 'cat' is 'some'"),
        ('{"ape": 0.5, "bee": 0.3, "cat": true}', "the share of class 'cat' is True"),
        ('{"ape": 0.5, "bee": 0.5, "cat": 0}', "class 'cat' the share 0"),
        ('{"ape": 0.5, "bee": 0.3, "cat": 0.3}', "sum to 1.1"),
        ('{"ape": NaN, "bee": 0.3, "cat": 0.3}', "class 'ape' the share nan"),
        ("0.5\nhalf\n", "line 2 is 'half'"),
        ("0.5\n0.5\n", "2 shares for 3 classes"),
        ("", "0 shares for 3 classes"),
    ],
)
def test_a_file_that_is_no_prior_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "prior"
    file.write_text(text)
    with pytest.raises(ValueError, match=sentence) as error:
        read_prior(str(file), CLASSES)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there_names_the_other_choices(tmp_path: Path) -> None:
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ValueError, match="neither observed nor uniform nor a file"):
            read_prior(str(missing), CLASSES)
