"""Names and numbers of what a process may be given or lose: capabilities, securebits, namespaces. Pure."""

from __future__ import annotations

#: By number: include/uapi/linux/capability.h, up to CAP_CHECKPOINT_RESTORE of Linux 5.9.
CAPABILITIES = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid",
    "setpcap", "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw",
    "ipc_lock", "ipc_owner", "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct",
    "sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time", "sys_tty_config", "mknod",
    "lease", "audit_write", "audit_control", "setfcap", "mac_override", "mac_admin", "syslog",
    "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore",
)  # fmt: skip

#: Bits by name: include/uapi/linux/securebits.h.
SECUREBITS = {
    "noroot": 1 << 0,
    "noroot_locked": 1 << 1,
    "no_setuid_fixup": 1 << 2,
    "no_setuid_fixup_locked": 1 << 3,
    "keep_caps": 1 << 4,
    "keep_caps_locked": 1 << 5,
    "no_cap_ambient_raise": 1 << 6,
    "no_cap_ambient_raise_locked": 1 << 7,
}

#: CLONE_NEW flags by name: include/uapi/linux/sched.h. The order is that of the kernel's numbers.
NAMESPACES = {
    "time": 0x80,
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}


def capability_names(mask: int) -> tuple[str, ...]:
    """Return the names of the capabilities in a bit mask, in numeric order."""
    known = len(CAPABILITIES)
    return tuple(CAPABILITIES[bit] if bit < known else f"cap_{bit}" for bit in range(64) if mask >> bit & 1)


def securebit_names(mask: int) -> tuple[str, ...]:
    """Return the names of the securebits in a mask."""
    return tuple(name for name, bit in SECUREBITS.items() if mask & bit)
