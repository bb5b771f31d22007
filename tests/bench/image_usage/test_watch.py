"""The kernel's lists of mounts and mappings."""

from __future__ import annotations

import os

from bench.image_usage.watch import mount_points, parse_maps


def test_mount_points_may_contain_spaces() -> None:
    text = (
        "36 35 98:0 / /mnt/a\\040b rw - ext4 /dev/x rw\n37 35 0:50 / /var/lib/merged rw - overlay overlay rw\nshort\n"
    )
    assert mount_points(text) == {"/mnt/a b", "/var/lib/merged"}


def test_mappings_give_device_and_inode_of_each_file() -> None:
    lines = [
        "7f00-7f01 r--p 00000000 00:33 1234567                    /usr/lib/libc.so.6",
        "7f01-7f02 r-xp 00001000 00:33 1234567                    /usr/lib/libc.so.6",
        "7f02-7f03 r--s 00000000 103:02 9                          /a file with spaces (deleted)",
        "7f03-7f04 rw-p 00000000 00:00 0                          [heap]",
        "7f04-7f05 rw-p 00000000 00:00 0 ",
    ]
    assert parse_maps(lines) == {(os.makedev(0, 0x33), 1234567), (os.makedev(0x103, 2), 9)}
