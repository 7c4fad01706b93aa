"""POST /feedback: the true label of an earlier prediction."""

from fastapi import APIRouter, Request

from server.control import Control, control_of
from server.errors import InvalidContent, UnknownAnswer
from server.model import ModelControl
from server.problems import parse_json
from server.quality.feedback import LoggedPrediction
from server.schemas import FeedbackGiven, FeedbackTaken, Problem
from server.spelling import did_you_mean

router = APIRouter(tags=["quality"])


@router.post(
    "/feedback",
    responses={code: {"model": Problem} for code in (400, 404, 422)},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": FeedbackGiven.model_json_schema()}},
        }
    },
)
async def feedback(request: Request) -> FeedbackTaken:
    """Add the true label of an earlier prediction; it replaces an earlier label of the same one."""
    control = control_of(request)
    given = parse_json(FeedbackGiven, await request.body())
    answered = await control.find_prediction(given.request_id, request.state.owner)
    if answered is None:
        raise UnknownAnswer(
            f"no prediction is stored under request_id {given.request_id!r:.140}; give the id of "
            f"one of the last {control.answers.capacity}, for an item of a list ID/0, ID/1 ..."
        )
    model = _model(control, answered)
    class_id = _class_id(model, given.label)
    model.note_feedback(answered, class_id)
    correct = class_id == answered.class_id
    return FeedbackTaken(model=model.name, exit=answered.exit, correct=correct)


def _model(control: Control, answered: LoggedPrediction) -> ModelControl:
    """The model that has answered.

    Raises:
        UnknownAnswer: If it has been unloaded.
    """
    for model in control.models:
        if model.key == answered.model:
            return model
    raise UnknownAnswer("the model of this prediction has been unloaded; label its later ones")


def _class_id(model: ModelControl, label: str | int) -> int:
    """The class of a label.

    Raises:
        InvalidContent: If there is no such class, or the model predicts masks.
    """
    if model.task == "segmentation":
        raise InvalidContent(f"{model.name} predicts masks; feedback takes labels of whole samples")
    if model.has_label_sets:
        raise InvalidContent(f"{model.name} predicts sets of labels; feedback takes one label")
    if isinstance(label, str):
        if label in model.classes:
            return model.classes.index(label)
        hint = did_you_mean(label, model.classes) or "; give a name or an id"
        raise InvalidContent(f"label: {model.name} has no class {label!r:.80}{hint}")
    if 0 <= label < len(model.classes):
        return label
    raise InvalidContent(
        f"label: {model.name} has no class {label}; give an id from 0 to {len(model.classes) - 1}"
    )
