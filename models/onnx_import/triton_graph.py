"""Compare a Triton configuration with the ONNX graph that it describes."""

from onnx import GraphProto, TensorProto, ValueInfoProto

from models.onnx_import.inputs import RANK_OF_IMAGES, image_form
from models.onnx_import.triton import CONFIG, NO_FORMAT, Tensor, TritonEntry

ONNX_TYPES = {
    "TYPE_BOOL": TensorProto.BOOL,
    "TYPE_UINT8": TensorProto.UINT8,
    "TYPE_UINT16": TensorProto.UINT16,
    "TYPE_UINT32": TensorProto.UINT32,
    "TYPE_UINT64": TensorProto.UINT64,
    "TYPE_INT8": TensorProto.INT8,
    "TYPE_INT16": TensorProto.INT16,
    "TYPE_INT32": TensorProto.INT32,
    "TYPE_INT64": TensorProto.INT64,
    "TYPE_FP16": TensorProto.FLOAT16,
    "TYPE_FP32": TensorProto.FLOAT,
    "TYPE_FP64": TensorProto.DOUBLE,
    "TYPE_BF16": TensorProto.BFLOAT16,
    "TYPE_STRING": TensorProto.STRING,
}


def check_graph(entry: TritonEntry, graph: GraphProto) -> None:
    """Compare the configuration with the graph.

    Args:
        entry: The entry.
        graph: Of its model, without constants among the inputs.

    Raises:
        ValueError: If a name, type, shape or format of the configuration is not the graph's.
    """
    rows = 1 if entry.max_batch_size > 0 else 0
    for kind, described, own in (
        ("input", entry.inputs, graph.input),
        ("output", entry.outputs, graph.output),
    ):
        values = {value.name: value for value in own}
        for tensor in described:
            if tensor.name not in values:
                raise ValueError(
                    f"{CONFIG} has the {kind} {tensor.name!r}, which {entry.model} lacks; it has "
                    f"{', '.join(values)}"
                )
            _check_value(tensor, values[tensor.name], rows, f"{kind} {tensor.name!r}")
    for name in {value.name for value in graph.input} - {each.name for each in entry.inputs}:
        if entry.inputs:
            raise ValueError(f"{entry.model} has the input {name!r}, which {CONFIG} lacks")


def _check_value(tensor: Tensor, value: ValueInfoProto, rows: int, name: str) -> None:
    """Compare one input or output with the graph's."""
    own = value.type.tensor_type
    if own.elem_type != ONNX_TYPES[tensor.data_type]:
        kind = TensorProto.DataType.Name(own.elem_type).lower()
        raise ValueError(f"the {name} is {tensor.data_type} in {CONFIG}, and {kind} in the graph")
    if not own.HasField("shape"):
        return
    shape = [dim.dim_value if dim.dim_value > 0 else -1 for dim in own.shape.dim]
    given = [*[-1] * rows, *tensor.dims]
    fits = len(shape) == len(given) and all(
        mine == theirs or -1 in (mine, theirs) or axis < rows
        for axis, (mine, theirs) in enumerate(zip(shape, given, strict=True))
    )
    if not fits:
        raise ValueError(
            f"the {name} has the shape {given} in {CONFIG} (max_batch_size adds the rows), and "
            f"{shape} in the graph, -1 where it varies"
        )
    if tensor.format != NO_FORMAT and len(shape) == RANK_OF_IMAGES:
        is_last = image_form(value).channels_last
        if is_last != (tensor.format == "FORMAT_NHWC"):
            order = "last" if is_last else "first"
            raise ValueError(
                f"the {name} is {tensor.format} in {CONFIG}, but its channels are {order} in the "
                f"graph, {shape}"
            )
