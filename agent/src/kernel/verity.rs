//! fs-verity: a file that the kernel lets nobody write any more, and of which it holds every byte that is read against a tree
//! of hashes. Its digest is that of the tree's root and of how the tree is made.

use std::{fs::File, io, os::fd::AsRawFd as _};

/// `FS_IOC_MEASURE_VERITY` of `include/uapi/linux/fsverity.h`: `_IOWR('f', 134, struct fsverity_digest)`.
const MEASURE: libc::c_ulong = 0xc004_6686;
/// `FS_VERITY_HASH_ALG_SHA256`
const SHA256: u16 = 1;

/// `struct fsverity_digest`, with room for a SHA-256.
#[repr(C)]
struct Digest {
    algorithm: u16,
    /// In: bytes of room; out: bytes of the digest.
    size: u16,
    bytes: [u8; 32],
}

/// The fs-verity digest of a file that is open to read, made with SHA-256.
///
/// # Errors
/// As ioctl(2): `ENODATA` the file has no fs-verity, `ENOTTY` or `EOPNOTSUPP` its file system has none, `EOVERFLOW` its digest
/// is no SHA-256.
pub fn measure_verity(file: &File) -> io::Result<[u8; 32]> {
    let mut digest = Digest { algorithm: 0, size: 32, bytes: [0; 32] };
    // SAFETY: the descriptor is open; the kernel writes at most `size` bytes behind the header, and there are as many.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), MEASURE, &raw mut digest) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    if (digest.algorithm, digest.size) != (SHA256, 32) {
        return Err(io::Error::from_raw_os_error(libc::EOVERFLOW));
    }
    Ok(digest.bytes)
}
