"""POST /feedback: the true label of an earlier answer."""

from fastapi import APIRouter, Request

from server.errors import InvalidContent, UnknownAnswer
from server.lifespan import server_state
from server.model import ServedModel
from server.problems import parse_json
from server.schemas import FeedbackGiven, FeedbackTaken, Problem

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
    """Take in a true label that came late; one that came before for the answer is replaced."""
    service = server_state(request)
    given = parse_json(FeedbackGiven, await request.body())
    answered = service.find_prediction(given.request_id)
    if answered is None:
        raise UnknownAnswer(
            f"no answer is remembered under request_id {given.request_id!r:.140}; give an id of "
            f"the last {service.answers.capacity} answers, of a list's item ID/0, ID/1 ..."
        )
    model = service.models[answered.model]
    class_id = _class_id(model, given.label)
    model.note_feedback(answered, class_id)
    correct = class_id == answered.class_id
    return FeedbackTaken(model=model.name, exit=answered.exit, correct=correct)


def _class_id(model: ServedModel, label: str | int) -> int:
    """The class that a label means.

    Raises:
        InvalidContent: If it means none, or the model's answers are masks.
    """
    if model.task == "segmentation":
        raise InvalidContent(f"{model.name} answers masks; feedback is for labels of whole samples")
    if isinstance(label, str):
        if label in model.classes:
            return model.classes.index(label)
        raise InvalidContent(
            f"label: {model.name} has no class {label!r:.80}; give a name or an id"
        )
    if 0 <= label < len(model.classes):
        return label
    raise InvalidContent(
        f"label: {model.name} has no class {label}; give an id from 0 to {len(model.classes) - 1}"
    )
