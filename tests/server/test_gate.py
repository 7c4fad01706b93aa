from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Scope

import server.gate
from server.app import create_app
from server.errors import Forbidden, NotHere, Unauthorized
from server.gate import Gate, Group, KeyFiles, admin_gate, group_of, main_gate, without_root
from server.keys import KeySet
from server.quality.feedback import NOBODY
from server.settings import Settings

ADMIN_ROUTES = (
    *("/budget", "/frontier", "/audit", "/audit/rows", "/scheduler/reload", "/metrics"),
    "/v2/repository/index",
    *(f"/v2/repository/models/{{model}}/{change}" for change in ("load", "unload")),
)
PREDICTION_ROUTES = (
    "/predict", "/predict/stream", "/feedback", "/models", "/classify", "/v1/models",
    "/v1/models/{model}", "/v1/models/{model}:predict",
    "/v1/models/{model}/versions/{version}:predict", "/v2", "/v2/models/stats",
    "/v2/models/{model}", "/v2/models/{model}/versions/{version}",
    *(f"/v2/models/{{model}}{version}/{end}" for version in ("", "/versions/{version}")
      for end in ("ready", "infer", "stats")),
)  # fmt: skip
OPEN_ROUTES = (
    "/livez", "/readyz", "/health", "/healthz", "/ping", "/v2/health/live", "/v2/health/ready",
    "/docs", "/docs/assets/{name}", "/openapi.json",
)  # fmt: skip

UNKNOWN = "q1w2e3r4"


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


KEYS = {
    Group.PREDICTION: KeySet([digest("ann"), digest("bob"), digest("both")]),
    Group.ADMIN: KeySet([digest("root"), digest("both")]),
}


def scope_of(path: str, method: str = "POST", **headers: str) -> Scope:
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "path": path, "method": method, "headers": given, "root_path": ""}


def enter(gate: Gate, path: str, key: str | None = None, **headers: str) -> int:
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    return gate.enter(scope_of(path, **headers))


@pytest.mark.parametrize(
    ("paths", "group"),
    [
        (ADMIN_ROUTES, Group.ADMIN),
        (("/v2/repository/index", "/v2/repository/models/m/load"), Group.ADMIN),
        (("/nope", "/", "", "//predict", "/predictions", "/PREDICT", "/v2x"), Group.ADMIN),
        (PREDICTION_ROUTES, Group.PREDICTION),
        (OPEN_ROUTES, Group.OPEN),
    ],
)
def test_every_path_has_a_group_and_an_unknown_one_is_shut(
    paths: tuple[str, ...], group: Group
) -> None:
    assert [group_of(path) for path in paths] == [group] * len(paths)


def test_the_groups_hold_every_route_of_the_app() -> None:
    routes = {route.path for route in create_app(Settings()).routes if hasattr(route, "path")}
    found = set(create_app(Settings()).openapi()["paths"]) | routes
    listed = {*ADMIN_ROUTES, *PREDICTION_ROUTES, *OPEN_ROUTES}
    assert found <= listed, "say here and in server/gate.py which keys open it"


def test_without_keys_everybody_enters() -> None:
    for path in (*ADMIN_ROUTES, *PREDICTION_ROUTES, *OPEN_ROUTES):
        assert enter(Gate(), path) == NOBODY
        assert enter(Gate(), path, key="anything") == NOBODY


@pytest.mark.parametrize("path", [*ADMIN_ROUTES, *PREDICTION_ROUTES, "/nope"])
@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic ann", "ann", f"Bearer {UNKNOWN}"]
)
def test_a_missing_or_unknown_key_is_401_with_a_challenge(path: str, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    with pytest.raises(Unauthorized) as told:
        Gate(keys=KEYS).enter(scope_of(path, **headers))
    challenge = told.value.headers["WWW-Authenticate"]
    assert challenge.startswith('Bearer realm="eenet"')
    assert ("invalid_token" in challenge) == (header == f"Bearer {UNKNOWN}")
    assert "key" in told.value.detail and UNKNOWN not in told.value.detail


@pytest.mark.parametrize(
    ("path", "entering", "turned_away"),
    [("/predict", ("ann", "both"), "root"), ("/budget", ("root", "both"), "ann")],
)
def test_a_key_opens_the_routes_that_list_it(
    path: str, entering: tuple[str, ...], turned_away: str
) -> None:
    gate = Gate(keys=KEYS)
    owners = {enter(gate, path, key) for key in entering}
    assert len(owners) == 2 and NOBODY not in owners
    with pytest.raises(Forbidden, match="this key is for other routes"):
        enter(gate, path, turned_away)
    assert enter(gate, "/readyz") == NOBODY


def test_an_owner_is_a_signed_number_of_64_bits() -> None:
    for number in range(50):
        keys = {Group.PREDICTION: KeySet([digest(str(number))])}
        assert -(2**63) <= enter(Gate(keys=keys), "/predict", str(number)) < 2**63


def test_with_a_port_of_their_own_admin_routes_leave_the_main_one() -> None:
    settings = Settings(admin_port=9000)
    for path in ADMIN_ROUTES:
        with pytest.raises(NotHere, match="is not on this port"):
            enter(main_gate(settings), path)
        enter(admin_gate(settings), path)
    for path in PREDICTION_ROUTES:
        enter(main_gate(settings), path)
        with pytest.raises(NotHere):
            enter(admin_gate(settings), path)
    for path in OPEN_ROUTES:
        enter(main_gate(settings), path)
        enter(admin_gate(settings), path)


# ---- web pages ----------------------------------------------------------------------------------

CHANGING = ("/budget", "/feedback", "/scheduler/reload")


@pytest.mark.parametrize("path", CHANGING)
@pytest.mark.parametrize(
    "headers",
    [
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "Cross-Site", "origin": "http://server"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://server:81"},
        {"origin": "http://server.evil.example"},
        {"origin": "http://evil.example/server"},
        {"origin": ""},
        {"origin": "http://[::1"},
        {"origin": "http://"},
        {"origin": "\xff://server\x00"},
    ],
)
def test_pages_of_other_sites_change_nothing(path: str, headers: dict[str, str]) -> None:
    with pytest.raises(Forbidden, match="another site"):
        enter(Gate(), path, host="server", **headers)
    with pytest.raises(Forbidden, match="another site"):
        enter(Gate(keys=KEYS), path, "both", host="server", **headers)
    Gate().enter(scope_of(path, "GET", host="server", **headers))
    with pytest.raises(Forbidden, match="another site"):
        enter(Gate(), path, **headers)  # and without a Host
    enter(Gate(), "/predict", host="server", **headers)


@pytest.mark.parametrize("path", CHANGING)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "none"},
        {"origin": "http://server:80"},
        {"origin": "https://Server:80", "sec_fetch_site": "same-origin"},
        {"origin": "https://SERVER:80"},
    ],
)
def test_own_pages_and_programs_pass(path: str, headers: dict[str, str]) -> None:
    enter(Gate(), path, host="server:80", **headers)


SITES = Gate(origins=("https://a.example", "http://b.example:3000"))
PREFLIGHT = {"access_control_request_method": "POST"}


@pytest.mark.parametrize("origin", ["https://a.example", "http://b.example:3000"])
def test_a_listed_site_may_ask_for_predictions(origin: str) -> None:
    scope = scope_of("/predict", "OPTIONS", origin=origin, **PREFLIGHT)
    allowed = SITES.preflight(scope)
    assert allowed is not None and "POST" in allowed["access-control-allow-methods"]
    assert "Authorization" in allowed["access-control-allow-headers"]
    headers = dict(SITES.cors_headers(scope_of("/predict", origin=origin)))
    assert headers[b"access-control-allow-origin"] == origin.encode()
    assert headers[b"vary"] == b"Origin"
    enter(SITES, "/feedback", host="server", origin=origin, sec_fetch_site="cross-site")


@pytest.mark.parametrize(
    ("gate", "path", "headers"),
    [
        (Gate(), "/predict", {"origin": "https://a.example", **PREFLIGHT}),
        (SITES, "/predict", {"origin": "https://c.example", **PREFLIGHT}),
        (SITES, "/predict", PREFLIGHT),
        (SITES, "/predict", {"origin": "https://a.example"}),
        (SITES, "/budget", {"origin": "https://a.example", **PREFLIGHT}),
    ],
)
def test_no_other_preflight_is_answered(gate: Gate, path: str, headers: dict[str, str]) -> None:
    assert gate.preflight(scope_of(path, "OPTIONS", **headers)) is None


def test_a_listed_site_changes_no_budget() -> None:
    for gate in (SITES, Gate(origins=("*",))):
        with pytest.raises(Forbidden):
            enter(gate, "/budget", host="server", origin="https://a.example")
        budget = scope_of("/budget", origin="https://a.example")
        assert gate.cors_headers(budget) == []


def test_a_star_lets_all_sites_ask() -> None:
    headers = dict(Gate(origins=("*",)).cors_headers(scope_of("/predict", origin="https://x.y")))
    assert headers[b"access-control-allow-origin"] == b"*" and b"vary" not in headers


# ---- the root path, and files -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("/ml/predict", "/predict"),
        ("/predict", "/predict"),
        ("/ml/ml/budget", "/budget"),
        ("/mlx/predict", "/mlx/predict"),
        ("/ml", "/ml"),
    ],
)
def test_a_proxy_may_leave_the_root_path_or_take_it_off(path: str, inside: str) -> None:
    scope = scope_of(path)
    without_root(scope, "/ml")
    assert (scope["path"], scope["root_path"]) == (inside, "/ml")


def test_no_root_path_opens_an_admin_route_by_the_name_of_another() -> None:
    scope = scope_of("/predict/predict/budget")
    without_root(scope, "/predict")
    assert group_of(scope["path"]) is Group.ADMIN


def test_keys_come_from_the_files_and_new_ones_are_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.gate, "CHECK_S", 0.001)
    path = tmp_path / "keys"
    path.write_text(f"sha256:{digest('old').hex()}\n")
    settings = Settings(api_keys=path)
    files = KeyFiles(settings)
    for gate in (main_gate(settings), admin_gate(settings)):
        assert gate.keys[Group.PREDICTION].digests == frozenset(), "shut until keys are there"
    assert files.keys.keys() == {Group.PREDICTION}

    async def watch() -> Any:
        handed: asyncio.Queue[Any] = asyncio.Queue()
        watching = asyncio.create_task(files.watch(handed.put_nowait))
        path.write_text(f"sha256:{digest('newer').hex()} with a name\n")
        keys = await asyncio.wait_for(handed.get(), 30)
        watching.cancel()
        return keys

    keys = asyncio.run(watch())
    assert digest("newer") in keys[Group.PREDICTION] and digest("old") not in keys[Group.PREDICTION]
