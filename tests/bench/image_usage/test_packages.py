"""Which package a file belongs to."""

from __future__ import annotations

from bench.image_usage.layers import merge
from bench.image_usage.packages import (
    Package,
    owners,
    parse_apk,
    parse_dpkg_status,
    parse_dpkg_sums,
    parse_record,
    wheel_of,
)
from tests.bench.image_usage.made import Inodes

STATUS = """\
Package: libc6
Status: install ok installed
Version: 2.36-9
Description: C library
 with: a line of more

Package: gone
Status: deinstall ok config-files
Version: 1

Package: python3-gi
Status: install ok installed
Version: 3.42
"""


def test_dpkgs_status_gives_the_version_of_each_installed_package() -> None:
    assert parse_dpkg_status(STATUS) == {"libc6": "2.36-9", "python3-gi": "3.42"}
    assert parse_dpkg_status("Package: distroless\nVersion: 3\n") == {"distroless": "3"}


def test_the_sums_of_an_image_without_dpkg_name_its_files() -> None:
    assert parse_dpkg_sums("d41d8  ./usr/lib/x y\nd41d8  usr/bin/z\n\n") == ["/usr/lib/x y", "/usr/bin/z"]


def test_a_wheels_record_names_its_files() -> None:
    text = 'numpy/__init__.py,sha256=abc,12\n"a, b.py",,\n../../../bin/f2py,sha256=x,3\n'
    folder = "/opt/venv/lib/python3.11/site-packages"
    assert parse_record(text, folder) == [f"{folder}/numpy/__init__.py", f"{folder}/a, b.py", "/opt/venv/bin/f2py"]
    assert wheel_of("Some_Wheel-2.0.1.dist-info") == Package("some-wheel", "2.0.1", "wheel")


def test_apks_database_names_packages_and_files() -> None:
    text = "C:Q1\nP:musl\nV:1.2.4\nF:lib\nR:ld-musl.so.1\na:0:0:755\nF:\nR:at-the-root\n\nP:empty\nV:1\n\n"
    assert list(parse_apk(text)) == [
        (Package("musl", "1.2.4", "apk"), ["/lib/ld-musl.so.1", "/at-the-root"]),
        (Package("empty", "1", "apk"), []),
    ]


def test_each_file_belongs_to_a_package_or_a_folder() -> None:
    site = "/opt/venv/lib/python3.11/site-packages"
    files = {
        "/var/lib/dpkg/status": STATUS,
        "/var/lib/dpkg/info/libc6:amd64.list": "/.\n/lib\n/lib/x86_64-linux-gnu/libc.so.6\n/usr/share/doc/libc6\n",
        "/var/lib/dpkg/info/libc6:amd64.md5sums": "",
        "/usr/lib/x86_64-linux-gnu/libc.so.6": "",
        f"{site}/six-1.0.dist-info/RECORD": "six.py,,\nsix-1.0.dist-info/RECORD,,\n",
        f"{site}/six.py": "",
        f"{site}/__pycache__/six.cpython-311.pyc": "",
        f"{site}/__pycache__/other.cpython-311.opt-2.pyc": "",
        "/app/services/x.py": "",
        "/top": "",
    }
    view = merge([Inodes().content(dict.fromkeys(files, 1), links={"/lib": "usr/lib"})])
    owner = owners(view, files.__getitem__)
    libc, six = Package("libc6", "2.36-9", "deb"), Package("six", "1.0", "wheel")
    assert owner["/usr/lib/x86_64-linux-gnu/libc.so.6"] == libc  # listed through the link /lib
    assert owner["/var/lib/dpkg/info/libc6:amd64.md5sums"] == libc
    assert owner[f"{site}/six.py"] == owner[f"{site}/__pycache__/six.cpython-311.pyc"] == six
    assert owner[f"{site}/six-1.0.dist-info/RECORD"] == six
    assert owner[f"{site}/__pycache__/other.cpython-311.opt-2.pyc"] == Package("/opt/venv")
    assert owner["/app/services/x.py"] == Package("/app/services")
    assert str(owner["/top"]) == "no package, /"
    assert set(owner) == set(files)


def test_the_packages_of_distroless_and_alpine_images_are_found() -> None:
    files = {
        "/var/lib/dpkg/status.d/tzdata": "Package: tzdata\nVersion: 2024\n",
        "/var/lib/dpkg/status.d/tzdata.md5sums": "d4  usr/share/zoneinfo/UTC\n",
        "/usr/share/zoneinfo/UTC": "",
        "/lib/apk/db/installed": "P:busybox\nV:1\nF:bin\nR:busybox\n",
        "/bin/busybox": "",
    }
    owner = owners(merge([Inodes().content(dict.fromkeys(files, 1))]), files.__getitem__)
    assert owner["/usr/share/zoneinfo/UTC"] == Package("tzdata", "2024", "deb")
    assert owner["/bin/busybox"] == Package("busybox", "1", "apk")
