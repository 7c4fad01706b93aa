"""Which of a bundle's precisions a server takes."""

import gc
import io
import json
import logging
import re
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import server.precision
from models.backend import HeadOutput, Part, State, gather_arrays
from models.bundle import (
    MANIFEST,
    Bundle,
    BundleError,
    Manifest,
    Precision,
    Variant,
    load_bundle,
    rewrite_entry,
)
from models.known_answers import load_known_answers
from models.runtime.onnx_backend import CPU, Device
from server.app import create_app
from server.cli.main import main
from server.cli.predict import OfflineModel
from server.precision import (
    LEAST_GAIN,
    MEASURE_S,
    Network,
    fastest,
    fitting_precisions,
    measure_ms,
    open_network,
)
from server.settings import Settings
from tests.server.two_precisions import (
    POLICIES,
    SIDE,
    save_made_up_scheduler,
    write_format_1,
    write_two_precisions,
)

GPU, TENSORRT = (
    Device(f"{name}:0", ["gpu", "CPUExecutionProvider"]) for name in ("cuda", "tensorrt")
)
OPENVINO = Device("openvino:CPU", ["openvino", "CPUExecutionProvider"])
EXAMPLE = (np.zeros((1, 3, SIDE, SIDE), np.float32),)
ALL: tuple[Precision, ...] = ("int8", "float16", "float32")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_two_precisions(tmp_path_factory.mktemp("tiny") / "bundle", ALL)


@pytest.fixture(autouse=True)
def a_cpu_without_integer_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.precision, "integer_instructions", lambda: "none")


def holding(bundle: Bundle, *precisions: Precision) -> Bundle:
    held = {each: bundle.manifest.precisions[each] for each in precisions}
    return Bundle(bundle.folder, bundle.manifest.model_copy(update={"precisions": held}))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """A backend that answers as its variant should, plus an offset, and takes time.

    Args:
        clock: Advanced by every stage.
        times_ms: What the stages take, one number per pass; the last holds for all further passes.
        fails: Whether it raises instead.
    """

    num_exits, device = 2, "cpu"

    def __init__(
        self,
        clock: Clock,
        times_ms: Sequence[float],
        variant: Variant | None = None,
        wrong: bool = False,
        fails: bool = False,
    ) -> None:
        self._clock, self._times_ms, self._fails = clock, list(times_ms), fails
        self.passes = 0
        if variant is not None:
            assert variant.known_answers is not None
            self._log_probs = load_known_answers(variant.known_answers).log_probs
            if wrong:
                self._log_probs = self._log_probs[:, ::-1]

    def gather(self, parts: Sequence[Part]) -> State:
        return gather_arrays(parts)

    def run_stage(self, stage: int, state: State) -> State:
        if self._fails:
            raise RuntimeError("a kernel is missing")
        if stage == 0 and len(state[0]) == 1:
            self.passes += 1
            index = min(self.passes, len(self._times_ms)) - 1
            self._clock.now += self._times_ms[index] / 1e3
        return state

    def run_head(self, exit: int, state: State) -> HeadOutput:
        log_probs = self._log_probs[exit, : len(state[0])]
        return HeadOutput(log_probs, log_probs)

    def synchronize(self) -> None:
        pass


class Opener:
    """Opens fakes and keeps their names; `times_ms` is what a pass of each takes."""

    def __init__(self, times_ms: dict[str, float], wrong: Sequence[str] = ()) -> None:
        self.clock, self.opened = Clock(), list[Precision]()
        self.fakes = list[weakref.ref[Fake]]()
        self._times_ms, self._wrong = times_ms, wrong

    def __call__(self, variant: Variant) -> Fake:
        self.opened.append(variant.precision)
        time_ms = self._times_ms.get(variant.precision, 1.0)
        fake = Fake(self.clock, [time_ms], variant, variant.precision in self._wrong)
        self.fakes.append(weakref.ref(fake))
        return fake

    def network(self, bundle: Bundle, device: Device, named: Precision | None = None) -> Network:
        return open_network(bundle, device, named, EXAMPLE, self, self.clock)


@pytest.mark.parametrize(
    ("device", "held", "named", "opened"),
    [
        (CPU, ALL, None, ["float32", "int8"]),
        (CPU, ("float32",), None, ["float32"]),
        (CPU, ("int8",), None, ["int8"]),
        (CPU, ("float16", "int8"), None, ["int8"]),
        (CPU, ALL, "float16", ["float16"]),
        (CPU, ALL, "int8", ["int8"]),
        (GPU, ALL, None, ["float16"]),
        (GPU, ("int8", "float32"), None, ["float32"]),
        (GPU, ALL, "int8", ["int8"]),
        (GPU, ALL, "float32", ["float32"]),
        (TENSORRT, ALL, None, ["float16"]),
        (OPENVINO, ALL, None, ["float32"]),
        (OPENVINO, ALL, "int8", ["int8"]),
    ],
)
def test_only_precisions_that_fit_the_device_are_opened(
    bundle: Bundle,
    device: Device,
    held: Sequence[Precision],
    named: Precision | None,
    opened: list[str],
) -> None:
    opener = Opener({})
    network = opener.network(holding(bundle, *held), device, named)
    assert opener.opened == opened
    assert network.variant.precision in opened


@pytest.mark.parametrize(
    ("device", "held"), [(GPU, "int8"), (OPENVINO, "int8"), (CPU, "float16"), (OPENVINO, "float16")]
)
def test_a_bundle_without_anything_for_the_device_is_refused(
    bundle: Bundle, device: Device, held: Precision
) -> None:
    with pytest.raises(BundleError, match=f"only {held}, which {device.name} is not given unless"):
        fitting_precisions(holding(bundle, held), device)


def test_a_named_precision_that_the_bundle_lacks_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="holds no int8 network, only float32"):
        Opener({}).network(holding(bundle, "float32"), CPU, "int8")


@pytest.mark.parametrize(
    ("float32_ms", "int8_ms", "chosen"),
    [(2.0, 1.0, "int8"), (2.0, 1.9, "int8"), (2.0, 1.901, "float32"), (1.0, 2.0, "float32")],
)
def test_int8_must_save_a_twentieth_of_the_time(
    bundle: Bundle, float32_ms: float, int8_ms: float, chosen: Precision
) -> None:
    assert LEAST_GAIN == 0.05
    assert fastest({"float32": float32_ms, "int8": int8_ms}) == chosen
    opener = Opener({"float32": float32_ms, "int8": int8_ms})
    if int8_ms != 1.9:  # the sum of the clock's steps is not that exact
        assert opener.network(bundle, CPU).variant.precision == chosen


def test_the_time_of_the_measurement_is_bounded_and_the_first_runs_do_not_count() -> None:
    clock = Clock()
    one, other = (
        Fake(clock, [30, *[ms] * 500], holding_variant)
        for ms, holding_variant in ((4, None), (6, None))
    )
    one._log_probs = other._log_probs = np.zeros((2, 1, 3), np.float32)
    networks = [
        Network(named(precision), fake) for precision, fake in (("float32", one), ("int8", other))
    ]
    started = clock.now
    assert measure_ms(networks, EXAMPLE, clock) == pytest.approx({"float32": 4, "int8": 6})
    assert clock.now - started <= MEASURE_S < 0.5
    assert one.passes == other.passes > 10


def named(precision: Precision) -> Variant:
    return Variant(None, precision)  # type: ignore[arg-type]


def test_a_slow_network_is_run_once() -> None:
    clock = Clock()
    fakes = [Fake(clock, [ms]) for ms in (900, 300)]
    for fake in fakes:
        fake._log_probs = np.zeros((2, 1, 3), np.float32)
    networks = [Network(named("float32"), fakes[0]), Network(named("int8"), fakes[1])]
    assert measure_ms(networks, EXAMPLE, clock) == pytest.approx({"float32": 900, "int8": 300})
    assert [fake.passes for fake in fakes] == [1, 1]


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == level]


def test_one_line_names_the_choice_and_its_reason(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    Opener({"float32": 2.95, "int8": 1.11}).network(bundle, CPU)
    Opener({}).network(bundle, CPU, "float16")
    Opener({}).network(holding(bundle, "float32"), CPU)
    ending = "; integer instructions of this CPU: none"
    assert lines(caplog, logging.INFO) == [
        f"tiny runs in int8 on cpu (float32 takes 2.950 ms, int8 takes 1.110 ms){ending}",
        f"tiny runs in float16 on cpu (as --precision says){ending}",
        f"tiny runs in float32 on cpu (nothing else in the bundle fits){ending}",
    ]


@pytest.mark.parametrize("precision", ["int8", None])
def test_wrong_answers_mean_float32_and_one_warning(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, precision: Precision | None
) -> None:
    opener = Opener({"float32": 3.0, "int8": 1.0}, wrong=["int8"])
    network = opener.network(bundle, CPU, precision)
    assert network.variant.precision == "float32"
    (line,) = lines(caplog, logging.WARNING)
    assert re.fullmatch(
        r"the int8 network of tiny has other answers on this host than it was built with: they "
        r"differ by \d+\.\d %, of which rounding explains 3\.3 %; serving float32",
        line,
    )


def test_wrong_answers_of_half_precision_on_a_gpu_mean_float32(bundle: Bundle) -> None:
    opener = Opener({}, wrong=["float16"])
    assert opener.network(bundle, GPU).variant.precision == "float32"
    assert opener.opened == ["float16", "float32"]


@pytest.mark.parametrize("named", [None, "float32", "int8"])
def test_wrong_answers_of_float32_end_the_start(bundle: Bundle, named: Precision | None) -> None:
    with pytest.raises(
        ValueError, match=r"the float32 network of tiny has other answers .* again$"
    ):
        Opener({}, wrong=["float32", "int8"]).network(bundle, CPU, named)


def test_wrong_answers_without_float32_end_the_start(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="holds no float32 network to replace"):
        Opener({}, wrong=["int8"]).network(holding(bundle, "int8"), CPU)


def test_a_network_that_fails_is_a_sentence(bundle: Bundle) -> None:
    clock = Clock()
    with pytest.raises(ValueError, match="a network that fails here: a kernel is missing"):
        open_network(
            bundle, CPU, None, EXAMPLE, lambda variant: Fake(clock, [1], variant, fails=True), clock
        )


def test_networks_that_are_not_kept_are_released(bundle: Bundle) -> None:
    opener = Opener({"float32": 3.0, "int8": 1.0})
    network = opener.network(bundle, CPU)
    gc.collect()
    float32, int8 = (fake() for fake in opener.fakes)
    assert float32 is None and int8 is network.backend


# The whole server, with graphs that run.

Take = Callable[[Precision], None]


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Take:
    """Decides which precision is measured as the fastest."""

    def decide(precision: Precision) -> None:
        def times(networks: Sequence[Network], *given: object) -> dict[Precision, float]:
            return {
                each.variant.precision: 1.0 + (each.variant.precision != precision)
                for each in networks
            }

        monkeypatch.setattr(server.precision, "measure_ms", times)

    return decide


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_two_precisions(tmp_path / "bundle").folder


@pytest.fixture(scope="module")
def png() -> bytes:
    image = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (200, 30, 90)).save(image, "PNG")
    return image.getvalue()


def info_lines(client: TestClient) -> list[str]:
    return [
        line
        for line in client.get("/metrics").text.splitlines()
        if line.startswith("eenet_model_info{")
    ]


@pytest.mark.parametrize(
    ("fast", "setting", "served", "policy"),
    [
        ("int8", "auto", "int8", "entropy"),
        ("float32", "auto", "float32", "maxprob"),
        ("int8", "float32", "float32", "maxprob"),
        ("float32", "int8", "int8", "entropy"),
    ],
)
def test_the_chosen_precision_serves_with_its_own_scheduler_and_no_budget(
    folder: Path,
    take: Take,
    png: bytes,
    fast: Precision,
    setting: Literal["auto", "float32", "int8"],
    served: Precision,
    policy: str,
) -> None:
    take(fast)
    with TestClient(create_app(Settings(bundle=(folder,), precision=setting))) as client:
        (state,) = client.get("/budget").json()["models"]
        assert (state["policy"], state["budget_ms"]) == (policy, None)
        (info,) = info_lines(client)
        assert f'policy="{policy}",precision="{served}"' in info
        answer = client.post("/predict", content=png, headers={"content-type": "image/png"})
        assert answer.status_code == 200, answer.text


def test_wrong_answers_on_this_host_are_found_by_running_the_graphs(
    tmp_path: Path, take: Take, caplog: pytest.LogCaptureFixture
) -> None:
    take("int8")
    bundle = write_two_precisions(tmp_path / "bundle", wrong=["int8"])
    with TestClient(create_app(Settings(bundle=(bundle.folder,)))) as client:
        assert 'precision="float32"' in info_lines(client)[0]
    assert "the int8 network of tiny has other answers" in caplog.text


def test_reload_reads_the_scheduler_of_the_precision_being_served(folder: Path, take: Take) -> None:
    take("int8")
    with TestClient(create_app(Settings(bundle=(folder,)))) as client:
        # A new scheduler for float32 changes nothing; one for int8 is served.
        assert refit(folder, "float32", "entropy-opt") != refit(folder, "int8", "maxprob-opt")
        (reloaded,) = client.post("/scheduler/reload").json()["models"]
        variant = load_bundle(folder).variant("int8")
        listed = variant.bundle.manifest.files["int8/schedulers/maxprob-opt/scheduler.npz"]
        assert (reloaded["policy"], reloaded["sha256"]) == ("maxprob-opt", listed.sha256)
        (info,) = info_lines(client)
        assert 'policy="maxprob-opt",precision="int8"' in info


def refit(folder: Path, precision: Precision, policy: str) -> str:
    """Give a precision another scheduler; returns its place."""
    variant = load_bundle(folder).variant(precision)
    place = f"{precision}/schedulers/{policy}"
    save_made_up_scheduler(folder / place, policy)
    rewrite_entry(variant, schedulers={policy: place}, policy=policy)
    return place


def change(folder: Path, precision: Precision) -> None:
    """Replace a head of a precision, and list it as if it belonged there."""
    shutil.copy(folder / precision / "heads/1.onnx", folder / precision / "heads/0.onnx")
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    rewrite_entry(Variant(Bundle(folder, manifest), precision))


def test_reload_compares_the_network_of_the_precision_being_served(
    folder: Path, take: Take
) -> None:
    take("int8")
    with TestClient(create_app(Settings(bundle=(folder,)))) as client:
        change(folder, "float32")
        assert client.post("/scheduler/reload").status_code == 200
        change(folder, "int8")
        answer = client.post("/scheduler/reload")
        assert answer.status_code == 422
        assert "no longer holds the int8 network of tiny" in answer.text


def test_reload_of_a_bundle_that_lost_the_precision_is_refused(folder: Path, take: Take) -> None:
    take("int8")
    with TestClient(create_app(Settings(bundle=(folder,)))) as client:
        manifest = json.loads((folder / MANIFEST).read_text())
        del manifest["precisions"]["int8"]
        (folder / MANIFEST).write_text(json.dumps(manifest))
        assert "no longer holds the int8 network" in client.post("/scheduler/reload").text


def test_a_bundle_of_the_old_format_is_served_in_float32(tmp_path: Path, png: bytes) -> None:
    write_format_1(tmp_path / "old")
    with TestClient(create_app(Settings(bundle=(tmp_path / "old",)))) as client:
        (info,) = info_lines(client)
        assert 'policy="maxprob",precision="float32"' in info
        answer = client.post("/predict", content=png, headers={"content-type": "image/png"})
        assert answer.status_code == 200, answer.text
        assert client.post("/scheduler/reload").status_code == 200
    with pytest.raises(BundleError, match="holds no int8 network"):
        OfflineModel(load_bundle(tmp_path / "old"), Settings(precision="int8"))


def test_the_replay_backend_takes_what_is_named_or_comes_first(folder: Path) -> None:
    for settings, served in (
        (Settings(bundle=(folder,), backend="replay"), "float32"),
        (Settings(bundle=(folder,), backend="replay", precision="int8"), "int8"),
    ):
        with TestClient(create_app(settings)) as client:
            assert (
                f'device="replay",model="tiny",policy="{POLICIES[served]}"' in info_lines(client)[0]
            )


def test_torch_computes_in_float32_only(folder: Path) -> None:
    settings = Settings(bundle=(folder,), backend="torch", precision="int8")
    with pytest.raises(ValueError, match="torch backend computes in float32, not in int8"):
        OfflineModel(load_bundle(folder), settings)


def test_predictions_without_a_server_take_the_flag(
    folder: Path, png: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    opened = list[Precision]()
    opener = server.precision.open_network

    def noted(*given: object) -> Network:
        network = opener(*given)  # type: ignore[arg-type]
        opened.append(network.variant.precision)
        return network

    monkeypatch.setattr("server.loading.open_network", noted)
    (tmp_path / "a.png").write_bytes(png)
    assert main(["predict", str(folder), str(tmp_path / "a.png"), "--precision", "int8"]) == 0
    assert opened == ["int8"] and "label" in capsys.readouterr().out
    assert main(["predict", str(folder), str(tmp_path / "a.png"), "--precision", "float16"]) == 2
    assert "holds no float16 network" in capsys.readouterr().err


def test_serve_names_a_precision_that_a_bundle_lacks_before_it_starts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["serve", "--bundle", str(folder), "--precision", "float16", "--port", "0"]
    assert main(command) == 2
    assert "holds no float16 network" in capsys.readouterr().err
