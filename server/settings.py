"""Settings of the server: flags, then environment, then TOML file, then defaults."""

import ipaddress
import math
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from models.bundle import Precision
from server.client_key import VARIABLE
from server.cores import usable_cores
from server.limits import SMALL_SHARE, Limits
from server.spelling import did_you_mean

ENV_PREFIX = "EENET_"
CACHE_VARIABLE = "EENET_CACHE"  # of `--model` and hf://, which no server reads
SEE_HELP = "; see `eenet serve --help`"
GPU = r"(cuda|tensorrt)(:(0|[1-9][0-9]?))?"
DEVICE = rf"^(auto|cpu|{GPU}(,{GPU})*|openvino(:[A-Z]+(\.[0-9]+)?)?)$"
ORIGIN = re.compile(r"https?://[a-z0-9.\[\]:-]+")
LOOPBACK = ("127.0.0.1", "::1")
ZOO = Path(__file__).resolve().parent.parent / "models" / "zoo"
SHIPPED_BUNDLES = (ZOO / "cifar10-resnet56", ZOO / "ag-news-minilm")


class Settings(BaseSettings):
    """Every flag of `eenet serve`; the environment has each as EENET_NAME."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, allow_inf_nan=False
    )

    bundle: Annotated[tuple[Path, ...], NoDecode] = Field(
        SHIPPED_BUNDLES,
        description="bundle folder; repeat for several models (':' between them in the "
        "environment); with --repository default: none",
    )
    repository: Path | None = Field(
        None,
        description="folder with a folder NAME/VERSION for each version of a model, which may be "
        "loaded and unloaded while the server runs",
    )
    version_policy: str = Field(
        "latest",
        pattern=r"^(all|latest(:[1-9][0-9]{0,3})?)$",
        description="which versions of a model of --repository are served: latest, latest:N (the "
        "N latest) or all",
    )
    backend: Literal["onnx", "torch", "replay"] = Field(
        "onnx",
        description="inference backend; replay: no network, recorded predictions after simulated "
        "stage time",
    )
    device: str = Field(
        "auto",
        pattern=DEVICE,
        description="auto, cpu, cuda, cuda:N, tensorrt, tensorrt:N, openvino or openvino:DEVICE; "
        "several GPUs as cuda:0,cuda:1, with an engine for each",
    )
    precision: Literal["auto", "float32", "float16", "int8"] = Field(
        "auto",
        description="which of a bundle's networks runs; auto: float16 or float32 on a GPU, the "
        "faster of float32 and int8 on a CPU",
    )
    torch_mode: Literal["eager", "compile", "cuda-graphs"] = Field(
        "eager", description="how the torch backend runs stages"
    )
    replay_costs: Path | None = Field(
        None,
        description="cost table of the replay backend; default: the bundle's profile",
    )
    policy: str | None = Field(
        None,
        description="which of a bundle's fitted schedulers serves; default: the one that the "
        "bundle names",
    )
    budget_ms: float | None = Field(
        None,
        ge=1e-6,
        description="mean latency per sample; default: none, and --max-disagreement holds",
    )
    measure: Literal["compute", "end_to_end"] = Field(
        "compute", description="latency that the budget applies to"
    )
    max_disagreement: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="without a budget, largest share of the samples that get another answer than "
        "from the whole network; 0: every sample runs to the last exit",
    )
    confidence: float = Field(
        0.95, gt=0, lt=1, description="probability with which --max-disagreement is kept"
    )
    min_agreement: float | None = Field(
        None,
        gt=0,
        le=1,
        description="least share of early predictions that agree with the last exit, by the audit",
    )
    prefer: Literal["budget", "agreement"] = Field(
        "agreement",
        description="which one is kept if a budget and --min-agreement cannot both be",
    )
    window: int = Field(1000, ge=10, le=1_000_000, description="samples in the rolling mean")
    audit_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of the requests that continue to the last exit after their response "
        "is sent, after all other requests, to measure how far the exits agree; 0: none, so that "
        "nothing watches a promise but drift, and nothing renews it",
    )
    host: str = Field(
        "127.0.0.1", description="address to listen on; :: takes IPv4 and IPv6, an empty one too"
    )
    port: int = Field(8000, ge=0, le=65535, description="port to listen on")
    uds: Path | None = Field(
        None, description="path of a Unix socket to listen on instead of host and port"
    )
    fd: int | None = Field(
        None,
        ge=3,
        description="number of an open socket to listen on instead of host and port, as systemd "
        "passes it",
    )
    root_path: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="path under which a proxy shows this server, such as /ml",
    )
    forwarded_allow_ips: Annotated[tuple[str, ...], NoDecode] = Field(
        LOOPBACK,
        description="addresses and networks of the proxies whose X-Forwarded-For and "
        "X-Forwarded-Proto are believed; *: all, and those on a Unix socket",
    )
    api_keys: Path | None = Field(
        None,
        description="file of the hashes of the keys that predictions and feedback need; default: "
        "no key is needed",
    )
    admin_keys: Path | None = Field(
        None,
        description="file of the hashes of the keys that budgets, metrics, audit and reload need; "
        "default: no key is needed",
    )
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="port of its own for budgets, metrics, audit and reload, which the other port "
        "then lacks; probes are on both",
    )
    admin_host: str = Field("127.0.0.1", description="address that --admin-port listens on")
    cors_origin: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="origins whose web pages may ask for predictions, such as "
        "https://a.example,https://b.example; *: all; default: none",
    )
    ssl_certfile: Path | None = Field(
        None, description="certificate chain in PEM; the server then speaks TLS on all its ports"
    )
    ssl_keyfile: Path | None = Field(
        None, description="its private key in PEM; default: it is in the file of the certificate"
    )
    ssl_keyfile_password: SecretStr | None = Field(
        None,
        description="password of an encrypted private key; other users see flags, so prefer "
        "the environment",
    )
    front_ends: int | None = Field(
        None,
        ge=0,
        le=256,
        description="processes that speak HTTP and decode inputs; 0: one process does everything; "
        "default: one for every four usable cores, with a GPU one for every two, at most eight",
    )
    engines: int | None = Field(
        None,
        ge=1,
        le=256,
        description="processes that run networks; default: one per GPU; on a CPU as many as keep "
        "the usable cores busy",
    )
    engine_workers: int | None = Field(
        None,
        ge=1,
        le=256,
        description="threads of each engine that run networks; default: one on a GPU; on a CPU as "
        "many as keep the usable cores busy",
    )
    threads_per_run: int = Field(
        1,
        ge=1,
        le=256,
        description="cores that ONNX Runtime uses for one batch; more than 1 answers few requests "
        "to a large network sooner, and many requests later",
    )
    gpu_memory_mib: int | None = Field(
        None,
        ge=1,
        description="most GPU memory that ONNX Runtime reserves for each graph of a network, "
        "weights included; default: no limit",
    )
    max_batch: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="largest batch; default: chosen by a measurement at start, 1 on most CPUs",
    )
    max_queue: int = Field(512, ge=1, description="most samples in flight; others get status 429")
    max_queue_s: float = Field(
        1,
        gt=0,
        le=3600,
        description="longest time that a sample should wait for those before it; others get "
        "status 429",
    )
    max_body_mib: int = Field(32, ge=1, le=1024, description="largest request body")
    max_held_mib: int | None = Field(
        None,
        ge=1,
        description="most request bodies in flight, together; others get status 429; default: four "
        "of the largest for each front-end",
    )
    max_head_kib: int = Field(
        32, ge=1, le=1024, description="largest request head; others get status 431"
    )
    max_fields: int = Field(
        100, ge=8, le=10_000, description="most header fields; others get status 431"
    )
    max_url_kib: int = Field(16, ge=1, le=1024, description="longest URL; others get status 414")
    max_parts: int = Field(16, ge=1, le=1000, description="most parts of a form")
    max_connections: int = Field(
        2048, ge=1, description="most open connections; others get status 503"
    )
    first_byte_s: float = Field(
        20, gt=0, le=3600, description="longest time until a connection's first byte"
    )
    head_s: float = Field(
        10, gt=0, le=3600, description="longest time for a request head to arrive"
    )
    body_s: float = Field(20, gt=0, le=3600, description="longest time for a body to arrive")
    keep_alive_s: float = Field(
        75,
        gt=0,
        le=3600,
        description="longest time between two requests of a connection, and without taking any of "
        "an answer",
    )
    max_pixels: int = Field(50_000_000, ge=1, le=89_000_000, description="most pixels of an image")
    max_pixels_per_byte: int = Field(
        1000,
        ge=1,
        le=2**31,
        description="most pixels per byte of an image file, for images of above four million "
        "pixels",
    )
    max_scans: int = Field(32, ge=1, le=1000, description="most scans of a progressive JPEG")
    max_decoding_pixels: int = Field(
        200_000_000,
        ge=1,
        description="most pixels of all images that are being decoded, on the whole server; "
        "further ones wait, but each front-end may always decode one",
    )
    max_items: int = Field(256, ge=1, description="most items of one list request")
    decode_workers: int = Field(2, ge=1, le=64, description="threads that decode images")
    decode_timeout_s: float = Field(
        2, gt=0, le=60, description="longest time to decode one image; others get status 422"
    )
    deregister_s: float = Field(
        0,
        ge=0,
        le=600,
        description="seconds after SIGTERM in which requests are still taken while /readyz returns "
        "503, so that load balancers learn of it",
    )
    drain_s: int = Field(6, ge=0, description="seconds that shutdown waits for open requests")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe line logged"
    )
    log_format: Literal["plain", "json"] = Field(
        "plain", description="form of log lines; json: one object each"
    )
    access_log: float = Field(
        0,
        ge=0,
        le=1,
        description="share of the requests that have a line in the log, probes left out; 1: all",
    )

    @field_validator("device")
    @classmethod
    def _check_devices(cls, value: str) -> str:
        devices = [name if ":" in name else f"{name}:0" for name in value.split(",")]
        for name in devices:
            if devices.count(name) > 1:
                raise ValueError(f"{name} is listed twice; list each device once")
        if len({name.partition(":")[0] for name in devices}) > 1:
            raise ValueError("kinds of devices are mixed; list devices of one kind")
        return value

    @model_validator(mode="after")
    def _check_runtime(self) -> "Settings":
        if self.backend != "onnx" and self.threads_per_run > 1:
            raise ValueError(
                f"--threads-per-run {self.threads_per_run} is about ONNX Runtime, which --backend "
                f"{self.backend} does not use; leave it out"
            )
        on_gpu = self.device.startswith(("auto", "cuda", "tensorrt"))
        if self.gpu_memory_mib is not None and (self.backend != "onnx" or not on_gpu):
            raise ValueError(
                f"--gpu-memory-mib {self.gpu_memory_mib} is about ONNX Runtime on a GPU, which "
                f"--backend {self.backend} --device {self.device} does not use; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_listener(self) -> "Settings":
        if self.uds is not None and self.fd is not None:
            raise ValueError(f"--uds {self.uds} and --fd {self.fd} exclude each other; give one")
        if self.ssl_certfile is None and self.ssl_keyfile is not None:
            raise ValueError(
                f"--ssl-keyfile {self.ssl_keyfile} has no certificate; give --ssl-certfile too"
            )
        return self

    @field_validator("cors_origin", "forwarded_allow_ips", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple([each.strip() for each in value.split(",")])

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _check_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in value:
            try:
                proxy == "*" or ipaddress.ip_network(proxy)
            except ValueError as error:
                raise ValueError(
                    f"{proxy!r} is no address or network of a proxy; give such as 10.0.0.7 or "
                    f"10.0.0.0/8, or *"
                ) from error
        return value

    @field_validator("cors_origin")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is not an origin; give scheme and host as browsers send them, "
                    f"such as https://a.example, or *"
                )
        return value

    @model_validator(mode="after")
    def _check_bounds(self) -> "Settings":
        if self.max_url_kib > self.max_head_kib:
            raise ValueError(
                f"--max-url-kib {self.max_url_kib} is more than --max-head-kib "
                f"{self.max_head_kib}, which includes the URL; give at most that"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _repository_alone(cls, given: Any) -> Any:
        """Serve no shipped bundle beside a repository, unless it is asked for."""
        if isinstance(given, dict) and given.get("repository") is not None:
            return {"bundle": (), **given}
        return given

    @model_validator(mode="after")
    def _check_models(self) -> "Settings":
        if not self.bundle and self.repository is None:
            raise ValueError("there is no bundle to serve; give --bundle, or --repository")
        if self.repository is not None and not self.repository.is_dir():
            raise ValueError(
                f"--repository {self.repository} is not a folder; make it, with a folder "
                f"NAME/VERSION for each version of a model"
            )
        return self

    @field_validator("bundle", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return tuple(value.split(os.pathsep)) if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read flags and file from `init`, where they arrive merged, then the environment."""
        return (init_settings, env_settings)

    @property
    def image_bounds(self) -> dict[str, int]:
        """The bounds on one image, as arguments of a bundle's preprocessor."""
        names = ("max_pixels", "max_pixels_per_byte", "max_scans")
        return {name: getattr(self, name) for name in names}

    @property
    def named_precision(self) -> Precision | None:
        """The precision that the operator names; None: the server chooses."""
        return None if self.precision == "auto" else self.precision

    def workers_on(self, device: str) -> int:
        """Number of engine threads in one process: the setting, else those that fill the cores.

        Other devices than CPUs run one batch at a time, so one thread feeds them.
        """
        if self.engine_workers is not None:
            return self.engine_workers
        return max(1, usable_cores().usable // self.threads_per_run) if device == "cpu" else 1

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that `device` lists, as they are named there."""
        return tuple(self.device.split(","))

    @property
    def one_device(self) -> str:
        """The device, where only one can be used.

        Raises:
            ValueError: If several are listed.
        """
        if len(self.devices) > 1:
            raise ValueError(f"one process runs one device, not {self.device!r}; name one of them")
        return self.device


def share_of(settings: Settings, front_ends: int) -> Settings:
    """Return the settings of one of several front-ends; what they may hold is divided.

    Args:
        settings: The server's.
        front_ends: How many there are.

    Raises:
        ValueError: If a share of `max_held_mib` is too small for the largest body.
    """
    shares = {
        "max_queue": max(settings.max_queue // front_ends, 1),
        "max_connections": max(settings.max_connections // front_ends, 1),
        "max_decoding_pixels": max(settings.max_decoding_pixels // front_ends, 1),
    }
    if settings.max_held_mib is not None:
        shares["max_held_mib"] = settings.max_held_mib // front_ends
    share = settings.model_copy(update=shares)
    limits_of(share, front_ends)
    return share


def limits_of(settings: Settings, front_ends: int = 1) -> Limits:
    """Return the bounds of a process that speaks HTTP.

    Args:
        settings: Its share.
        front_ends: How many processes share.

    Raises:
        ValueError: If `max_held_mib` is too small for the largest body.
    """
    held_mib = settings.max_held_mib
    if held_mib is None:
        held_mib = 4 * settings.max_body_mib
    elif held_mib * (1 - SMALL_SHARE) < settings.max_body_mib:
        least = math.ceil(settings.max_body_mib / (1 - SMALL_SHARE)) * front_ends
        raise ValueError(
            f"--max-held-mib has no room for one body of --max-body-mib {settings.max_body_mib}; "
            f"give at least {least}, for {front_ends} processes that speak HTTP"
        )
    return Limits(
        max_head=settings.max_head_kib * 1024,
        max_fields=settings.max_fields,
        max_url=settings.max_url_kib * 1024,
        max_body=settings.max_body_mib * 2**20,
        max_held=held_mib * 2**20,
        max_connections=settings.max_connections,
        first_byte_s=settings.first_byte_s,
        head_s=settings.head_s,
        body_s=settings.body_s,
        keep_alive_s=settings.keep_alive_s,
    )


def load_settings(
    flags: Mapping[str, Any], config: Path | None, environ: Mapping[str, str]
) -> Settings:
    """Merge flags, environment and file.

    Args:
        flags: Values given on the command line, by field name.
        config: A TOML file of field names, or None.
        environ: The environment.

    Raises:
        ValueError: If the file cannot be read, or any of the three names an unknown key or a bad
            value.
    """
    known = Settings.model_fields.keys()
    for name in environ:
        if name in (VARIABLE, CACHE_VARIABLE):  # they are for commands, not for the server
            continue
        if name.startswith(ENV_PREFIX) and name.removeprefix(ENV_PREFIX).lower() not in known:
            variables = [f"{ENV_PREFIX}{each.upper()}" for each in known]
            hint = did_you_mean(name, variables) or SEE_HELP
            raise ValueError(f"unknown setting {name!r} in the environment{hint}")
    from_file = _read_toml(config) if config else {}
    for name in from_file.keys() - known:
        hint = did_you_mean(name, known) or SEE_HELP
        raise ValueError(f"unknown setting {name!r} in {config}{hint}")
    # Arguments of `Settings` win over the environment, which wins over the file.
    in_environ = {name.upper().removeprefix(ENV_PREFIX).lower() for name in environ}
    return Settings(**{**{k: v for k, v in from_file.items() if k not in in_environ}, **flags})


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"configuration {path} cannot be read: {error}") from error
