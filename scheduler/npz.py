"""Read npz files without running any code in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_arrays(path: str | Path, wanted: Callable[[str], bool]) -> dict[str, NDArray[Any]]:
    """Read the arrays of an npz whose names are wanted; nothing is unpickled.

    Raises:
        ValueError: If the file cannot be opened or is no npz of plain arrays.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if wanted(name)}
    except OSError as error:
        raise ValueError(f"{path} cannot be opened: {error.strerror or error}") from error
    except Exception as error:  # numpy and zipfile raise a dozen types on a damaged archive
        raise ValueError(
            f"{path} is not an npz of plain arrays, or damaged; write it with numpy.savez"
        ) from error
