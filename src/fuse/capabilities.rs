//! What is asked of the kernel at the handshake, if it offers it.

use fuser::InitFlags;

/// Its name in status, the flag, and what it is needed for.
pub(super) const CAPABILITIES: [(&str, InitFlags, &str); 10] = [
    (
        "atomic_o_trunc",
        InitFlags::FUSE_ATOMIC_O_TRUNC,
        "telling who truncates",
    ),
    (
        "handle_killpriv_v2",
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        "one request less per write",
    ),
    (
        "parallel_dirops",
        InitFlags::FUSE_PARALLEL_DIROPS,
        "concurrent lookups",
    ),
    (
        "posix_acl",
        InitFlags::FUSE_POSIX_ACL,
        "access control lists",
    ),
    (
        "posix_locks",
        InitFlags::FUSE_POSIX_LOCKS,
        "fcntl locks across versions",
    ),
    (
        "flock_locks",
        InitFlags::FUSE_FLOCK_LOCKS,
        "flock across versions",
    ),
    (
        "direct_io_allow_mmap",
        InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        "locks that move an open description to a newer version",
    ),
    ("dont_mask", InitFlags::FUSE_DONT_MASK, "default ACLs"),
    (
        "cache_symlinks",
        InitFlags::FUSE_CACHE_SYMLINKS,
        "fewer readlinks",
    ),
    (
        "async_dio",
        InitFlags::FUSE_ASYNC_DIO,
        "O_DIRECT in parallel",
    ),
];
