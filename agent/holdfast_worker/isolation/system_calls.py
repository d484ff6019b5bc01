"""The system calls that a worker has no business with, by protection, with their numbers on the two machines we know.

A list of what is refused, not of what is allowed: runtimes differ, and one that is refused a harmless call at the thousandth
request would be condemned for it. What is refused here is what reaches beyond the process. A test compares every number
with libseccomp's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from holdfast_shared.wire.report import Protection


# Column of the tables below.
MACHINES: Final = {"x86_64": 0, "aarch64": 1}
# There is none of that name.
NONE: Final = -1

_IO_URING: Final = {"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427)}

REFUSED: Final[dict[Protection, dict[str, tuple[int, int]]]] = {
    # io_uring makes sockets without the call that is refused.
    "network": {
        "socket": (41, 198),
        "connect": (42, 203),
        "bind": (49, 200),
        "listen": (50, 201),
        "accept": (43, 202),
        "accept4": (288, 242),
        **_IO_URING,
    },
    # `clone` and `clone3` are judged by their flags: threads are allowed.
    "programs": {
        "fork": (57, NONE),
        "vfork": (58, NONE),
        "execve": (59, 221),
        "execveat": (322, 281),
    },
    # Shared memory, which RLIMIT_DATA does not count. `mmap` is judged by its flags.
    "memory": {
        "shmget": (29, 194),
        "shmat": (30, 196),
        "memfd_create": (319, 279),
        "memfd_secret": (447, 447),
    },
    # Other processes, namespaces and mounts, and parts of the kernel that no model needs. Signals and limits are judged by whose.
    "system": {
        **_IO_URING,
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "process_madvise": (440, 440),
        "pidfd_open": (434, 434),
        "pidfd_getfd": (438, 438),
        "pidfd_send_signal": (424, 424),
        "tkill": (200, 130),
        "rt_sigqueueinfo": (129, 138),
        "rt_tgsigqueueinfo": (297, 240),
        "kcmp": (312, 272),
        "setpriority": (141, 140),
        "ioprio_set": (251, 30),
        "sched_setscheduler": (144, 119),
        "sched_setparam": (142, 118),
        "sched_setattr": (314, 274),
        "migrate_pages": (256, 238),
        "move_pages": (279, 239),
        "unshare": (272, 97),
        "setns": (308, 268),
        "chroot": (161, 51),
        "pivot_root": (155, 41),
        "mount": (165, 40),
        "umount2": (166, 39),
        "open_tree": (428, 428),
        "move_mount": (429, 429),
        "fsopen": (430, 430),
        "fsconfig": (431, 431),
        "fsmount": (432, 432),
        "fspick": (433, 433),
        "mount_setattr": (442, 442),
        "swapon": (167, 224),
        "swapoff": (168, 225),
        "quotactl": (179, 60),
        "quotactl_fd": (443, 443),
        "acct": (163, 89),
        "sethostname": (170, 161),
        "setdomainname": (171, 162),
        "name_to_handle_at": (303, 264),
        "open_by_handle_at": (304, 265),
        "fanotify_init": (300, 262),
        "bpf": (321, 280),
        "perf_event_open": (298, 241),
        "userfaultfd": (323, 282),
        "add_key": (248, 217),
        "request_key": (249, 218),
        "keyctl": (250, 219),
        "init_module": (175, 105),
        "finit_module": (313, 273),
        "delete_module": (176, 106),
        "kexec_load": (246, 104),
        "kexec_file_load": (320, 294),
        "reboot": (169, 142),
        "settimeofday": (164, 170),
        "clock_settime": (227, 112),
        "clock_adjtime": (305, 266),
        "adjtimex": (159, 171),
        "personality": (135, 92),
        "iopl": (172, NONE),
        "ioperm": (173, NONE),
        "modify_ldt": (154, NONE),
        "syslog": (103, 116),
        "vhangup": (153, 58),
    },
}
# Judged by their arguments in seccomp_filter.py.
JUDGED: Final[dict[str, tuple[int, int]]] = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "prlimit64": (302, 261),
    "mmap": (9, 222),
}
SECCOMP: Final = (317, 277)
