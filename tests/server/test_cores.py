from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cores import Cores, usable_cores

HOST = 64  # cores, unless a test says otherwise
V2 = "30 23 0:26 {top} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 24 0:27 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 24 0:28 {top} /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "33 24 0:29 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
V1_GROUPS = "9:memory:{group}\n4:cpu,cpuacct:{group}\n3:cpuset:{group}\n1:name=systemd:{group}\n"


def host(root: Path, groups: str, mounts: str, files: Mapping[str, str]) -> Path:
    """Write the file system of a process; the files' paths are below /sys/fs/cgroup."""
    content = {
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mounts,
        **{f"sys/fs/cgroup/{path}": text for path, text in files.items()},
    }
    for path, text in content.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def host_v2(root: Path, files: Mapping[str, str], group: str = "/", top: str = "/") -> Path:
    return host(root, f"0::{group}\n", V2.format(top=top), files)


def host_v1(root: Path, files: Mapping[str, str], group: str = "/", top: str = "/") -> Path:
    return host(root, V1_GROUPS.format(group=group), V1.format(top=top), files)


def quota_v1(folder: str, quota_us: str, period_us: str = "100000") -> dict[str, str]:
    group = f"cpu,cpuacct/{folder}".rstrip("/")
    return {f"{group}/cpu.cfs_quota_us": quota_us, f"{group}/cpu.cfs_period_us": period_us}


def test_without_control_groups_all_cores_count(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, HOST) == Cores(64, "64 cores: all of this host")


def test_an_affinity_is_told_beside_the_cores_of_the_host(tmp_path: Path) -> None:
    online = tmp_path / "sys/devices/system/cpu/online"
    online.parent.mkdir(parents=True)
    online.write_text("0-63\n")
    assert usable_cores(tmp_path, 3) == Cores(3, "3 of 64 cores: the affinity of this process")


@pytest.mark.parametrize(
    ("quota", "usable"),
    [
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("1000 100000\n", 1),
        ("6400000 100000\n", 64),
        ("99900000 100000\n", 64),
        ("max 100000\n", 64),
        ("30000 10000\n", 3),
    ],
)
def test_a_quota_of_version_2_is_rounded_down(tmp_path: Path, quota: str, usable: int) -> None:
    host_v2(tmp_path, {"cpu.max": quota})
    assert usable_cores(tmp_path, HOST).usable == usable


def test_the_reason_names_the_quota_and_its_group(tmp_path: Path) -> None:
    host_v2(tmp_path, {"cpu.max": "250000 100000"})
    reason = "2 of 64 cores: the quota of 2.5 in /sys/fs/cgroup"
    assert usable_cores(tmp_path, HOST) == Cores(2, reason)


@pytest.mark.parametrize(("quota_us", "usable"), [("200000", 2), ("10000", 1), ("-1", 64)])
def test_a_quota_of_version_1(tmp_path: Path, quota_us: str, usable: int) -> None:
    host_v1(tmp_path, quota_v1("", quota_us))
    assert usable_cores(tmp_path, HOST).usable == usable


def test_the_smallest_quota_up_to_the_mount_counts(tmp_path: Path) -> None:
    files = {
        "kube/pod/app/cpu.max": "max 100000",
        "kube/pod/cpu.max": "300000 100000",
        "kube/cpu.max": "800000 100000",
        "kube/other/cpu.max": "100000 100000",
    }
    host_v2(tmp_path / "two", files, "/kube/pod/app")
    reason = "3 of 64 cores: the quota of 3 in /sys/fs/cgroup/kube/pod"
    assert usable_cores(tmp_path / "two", HOST) == Cores(3, reason)
    v1_files = quota_v1("kube/pod", "300000") | quota_v1("kube/pod/app", "-1")
    host_v1(tmp_path / "one", v1_files, "/kube/pod/app")
    assert usable_cores(tmp_path / "one", HOST).usable == 3


def test_a_container_without_a_namespace_sees_its_own_group_at_the_mount(tmp_path: Path) -> None:
    host_v1(tmp_path, quota_v1("", "200000"), "/docker/abc", top="/docker/abc")
    assert usable_cores(tmp_path, HOST).usable == 2


def test_a_group_below_the_one_that_is_mounted(tmp_path: Path) -> None:
    files = {"cpu.max": "400000 100000", "child/cpu.max": "200000 100000"}
    host_v2(tmp_path, files, "/docker/abc/child", top="/docker/abc")
    assert usable_cores(tmp_path, HOST).usable == 2


@pytest.mark.parametrize("group", ["/docker/abc", "/docker/abcdef", "/../outside", "/"])
def test_a_group_that_the_mount_does_not_show_is_read_at_the_mount(
    tmp_path: Path, group: str
) -> None:
    # Container runtimes may bind the host's name of the group beside a mount of the group itself.
    files = {"cpu.max": "200000 100000", "def/cpu.max": "100000 100000"}
    host_v2(tmp_path, files, group, top="/docker/abc")
    assert usable_cores(tmp_path, HOST).usable == 2


def test_a_mount_of_another_group_does_not_count(tmp_path: Path) -> None:
    other = "40 23 0:26 /other /other rw - cgroup2 cgroup2 rw\n"
    files = {"mine/cpu.max": "400000 100000", "../../../other/cpu.max": "100000 100000"}
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    host(tmp_path, "0::/mine\n", V2.format(top="/") + other, files)
    assert usable_cores(tmp_path, HOST).usable == 4


def test_in_a_hybrid_tree_the_controllers_of_version_1_count(tmp_path: Path) -> None:
    unified = "34 24 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    files = {
        **quota_v1("app", "500000"),
        "cpuset/app/cpuset.cpus": "0-2",
        "unified/app/cgroup.procs": "1\n",
    }
    groups = V1_GROUPS.format(group="/app") + "0::/app\n"
    host(tmp_path, groups, V1.format(top="/") + unified, files)
    assert usable_cores(tmp_path, HOST) == Cores(
        3, "3 of 64 cores: the cpuset of /sys/fs/cgroup/cpuset/app"
    )


@pytest.mark.parametrize(
    ("cpus", "usable"),
    [("0-3\n", 4), ("0,2,4-5\n", 4), ("7", 1), ("0-3,2-5", 6), ("\n", 64), ("", 64)],
)
def test_a_cpuset_of_either_version(tmp_path: Path, cpus: str, usable: int) -> None:
    host_v2(tmp_path / "two", {"cpuset.cpus.effective": cpus})
    host_v1(tmp_path / "one", {"cpuset/cpuset.cpus": cpus})
    for version in ("one", "two"):
        assert usable_cores(tmp_path / version, HOST).usable == usable


def test_of_two_cpusets_the_effective_one_counts(tmp_path: Path) -> None:
    host_v2(tmp_path, {"cpuset.cpus": "0-31", "cpuset.cpus.effective": "0-7"})
    assert usable_cores(tmp_path, HOST).usable == 8


def test_an_escaped_mount_point_is_read(tmp_path: Path) -> None:
    mount = r"30 23 0:26 / /sys/fs/cgroup/with\040space rw - cgroup2 cgroup2 rw"
    host(tmp_path, "0::/\n", mount, {"with space/cpu.max": "200000 100000"})
    assert usable_cores(tmp_path, HOST).usable == 2


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "1 2 3", "0 0", "0 100000", "-5 100000", "5", "1-", "9-0", "0-999999999", "²"],
)
def test_files_that_make_no_sense_limit_nothing(tmp_path: Path, text: str) -> None:
    names = ("cpu.max", "cpuset.cpus.effective", "cpuset.cpus")
    host_v2(tmp_path, dict.fromkeys(names, text) if text != "5" else {"cpu.max": text})
    assert usable_cores(tmp_path, HOST).usable == HOST


def test_a_folder_or_bytes_in_place_of_a_file_limit_nothing(tmp_path: Path) -> None:
    host_v2(tmp_path, {"cpu.max/file": ""})
    (tmp_path / "sys/fs/cgroup/cpuset.cpus.effective").write_bytes(b"\xff\xfe")
    assert usable_cores(tmp_path, HOST).usable == HOST


@given(st.text(), st.text())
def test_no_text_of_the_kernel_is_an_error(
    tmp_path_factory: pytest.TempPathFactory, groups: str, mounts: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "any text"
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    for name, text in (("cgroup", groups), ("mountinfo", mounts)):
        (root / "proc/self" / name).write_bytes(text.encode(errors="surrogatepass"))
    assert usable_cores(root, HOST).usable == HOST


@given(st.integers(1, 256), st.integers(1, 256), st.integers(1, 10**9))
def test_the_least_counts_and_is_at_least_one(
    tmp_path_factory: pytest.TempPathFactory, affinity: int, cpus: int, quota_us: int
) -> None:
    root = tmp_path_factory.getbasetemp() / "any limits"
    files = {"cpuset.cpus.effective": f"0-{cpus - 1}", "cpu.max": f"{quota_us} 100000"}
    host_v2(root, files)
    cores = usable_cores(root, affinity)
    assert cores.usable == max(1, min(affinity, cpus, quota_us // 100_000))


def test_this_process_has_a_core() -> None:
    assert usable_cores().usable >= 1
