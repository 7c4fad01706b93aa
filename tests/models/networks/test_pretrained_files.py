import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from models.networks.pretrained_files import check_files, check_task, encoder_of, pooling_of

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 438\n"
TWO = {"id2label": {"0": "a", "1": "b"}}


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"architectures": ["BertForTokenClassification"], **TWO}, "token classification"),
        ({"architectures": ["BertForQuestionAnswering"]}, "question answering"),
        ({"architectures": ["GPT2LMHeadModel"]}, "generation"),
        ({"architectures": ["LlamaForCausalLM"]}, "generation"),
        ({"architectures": ["T5ForConditionalGeneration"]}, "generation"),
        ({"architectures": ["BertForMultipleChoice"]}, "multiple choice"),
        (
            {"architectures": ["BertForSequenceClassification"], "problem_type": "regression"},
            "regression",
        ),
        (
            {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}},
            "regression",
        ),
    ],
)
def test_other_tasks_are_refused_in_one_sentence(config: dict[str, Any], task: str) -> None:
    with pytest.raises(ValueError, match=f"my-model was made for {task}") as caught:
        check_task("my-model", config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"architectures": None},
        {"architectures": ["BertModel"], "id2label": {"0": "LABEL_0"}},
        {"architectures": ["BertForMaskedLM"]},
        {"architectures": ["BertForSequenceClassification"], **TWO},
        {"architectures": ["BertForSequenceClassification"]},
        {"architectures": ["ViTForImageClassification"], **TWO},
    ],
)
def test_encoders_and_classifiers_are_taken(config: dict[str, Any]) -> None:
    check_task("my-model", config)


def test_the_encoder_of_sentence_transformers_is_found(tmp_path: Path) -> None:
    assert encoder_of(tmp_path) == tmp_path and encoder_of("org/name") == "org/name"
    (tmp_path / "0_Transformer").mkdir()
    (tmp_path / "0_Transformer/config.json").write_text("{}")
    assert encoder_of(tmp_path) == tmp_path / "0_Transformer"
    modules = [{"idx": 0, "path": "inner"}, {"idx": 1, "path": "1_Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/config.json").write_text("{}")
    assert encoder_of(tmp_path) == tmp_path / "inner"
    (tmp_path / "config.json").write_text("{}")
    assert encoder_of(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, None),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "cls"}, None),
    ],
)
def test_the_pooling_of_sentence_transformers_is_read(
    tmp_path: Path, config: dict[str, Any], pooling: str | None
) -> None:
    assert pooling_of(tmp_path) is None
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(config))
    assert pooling_of(tmp_path) == pooling


def test_other_pooling_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ValueError, match="pools by max_tokens; exits pool by the mean or"):
        pooling_of(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(ValueError, match=f"{name} is a Git LFS pointer.*git lfs pull"):
        check_files(tmp_path)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(100, np.float32)}, path)
    check_files(tmp_path)
    for damaged in (path.read_bytes()[:-9], b"junk" * 9, b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off"):
            check_files(tmp_path)


def test_a_name_of_the_hub_has_no_files_to_check() -> None:
    check_files("org/name")
