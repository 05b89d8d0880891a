//! A file system with fs-verity in a file: a guest brings an empty one (`/ext4`), made where guests are made.

use std::{
    fs::File,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    sync::Mutex,
};

use anyhow::{Context, Result};
use nix::errno::Errno;

use super::{
    registry::Lacking,
    wait::{patience, until},
};

/// The empty file system, without the zeros at its end, and its size.
const EMPTY: &str = "/ext4";
const SIZE: u64 = 96 << 20;

// include/uapi/linux/loop.h
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
/// The device lets go of its file with its last user.
const LO_FLAGS_AUTOCLEAR: u32 = 4;

// include/uapi/linux/fsverity.h
const FS_IOC_ENABLE_VERITY: libc::c_ulong = 0x4080_6685;
const FS_IOC_MEASURE_VERITY: libc::c_ulong = 0xc004_6686;

/// A device lets go of its file when nobody has it open: it is open until the process ends.
static HELD: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// `struct loop_config` with `struct loop_info64` inside.
#[repr(C)]
struct LoopConfig {
    file: u32,
    block_size: u32,
    /// device, inode, device it is, offset, limit
    numbers: [u64; 5],
    number: u32,
    /// type and size of a key
    key: [u32; 2],
    flags: u32,
    rest: [u64; 22],
    reserved: [u64; 8],
}
const _: () = assert!(size_of::<LoopConfig>() == 304);

/// `struct fsverity_enable_arg`
#[repr(C)]
struct Enable {
    version: u32,
    hash: u32,
    block_size: u32,
    salt_size: u32,
    rest: [u64; 14],
}
const _: () = assert!(size_of::<Enable>() == 128);

/// `struct fsverity_digest` with room for a SHA-256.
#[repr(C)]
struct Measured {
    hash: u16,
    size: u16,
    bytes: [u8; 32],
}

/// Makes a new file system in the file `image`; the path of its device.
pub(crate) fn disk(image: &Path) -> Result<String> {
    if !Path::new(EMPTY).exists() {
        return Err(Lacking(format!("there is no empty file system at {EMPTY}")).into());
    }
    std::fs::copy(EMPTY, image)?;
    let file = File::options().read(true).write(true).open(image)?;
    file.set_len(SIZE)?;
    let control = match File::open("/dev/loop-control") {
        Ok(control) => control,
        Err(_) => return Err(Lacking("the kernel has no loop devices".to_owned()).into()),
    };
    let config = LoopConfig {
        file: file.as_raw_fd().cast_unsigned(),
        block_size: 0,
        numbers: [0; 5],
        number: 0,
        key: [0; 2],
        flags: LO_FLAGS_AUTOCLEAR,
        rest: [0; 22],
        reserved: [0; 8],
    };
    // a free one is nobody's until it has a file: another test may be faster
    let (path, device) = until("a free loop device", patience(), || {
        // SAFETY: the descriptor is open, and the command takes no argument.
        let number = Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
        let path = format!("/dev/loop{number}");
        let device = File::options().read(true).write(true).open(&path).with_context(|| path.clone())?;
        // SAFETY: the structure is the kernel's and outlives the call; both descriptors are open.
        match Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) }) {
            Ok(_) => Ok(Some((path, device))),
            Err(Errno::EBUSY) => Ok(None),
            Err(errno) => Err(errno).with_context(|| format!("{path} takes no file")),
        }
    })?;
    HELD.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(device.into());
    Ok(path)
}

/// Gives a file fs-verity, with SHA-256 and blocks of 4096 bytes; its digest as fsverity(1) prints it.
pub(crate) fn enable(file: &File) -> Result<String> {
    let enable = Enable { version: 1, hash: 1, block_size: 4096, salt_size: 0, rest: [0; 14] };
    // SAFETY: the structure is the kernel's and outlives the call; the descriptor is open.
    match Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_ENABLE_VERITY, &raw const enable) }) {
        Ok(_) => {}
        Err(Errno::EOPNOTSUPP | Errno::ENOTTY) => {
            return Err(Lacking("the kernel has no fs-verity".to_owned()).into());
        }
        Err(errno) => return Err(errno).context("fs-verity cannot be enabled"),
    }
    let mut measured = Measured { hash: 0, size: 32, bytes: [0; 32] };
    // SAFETY: as above; the kernel writes at most 32 bytes behind the header.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_MEASURE_VERITY, &raw mut measured) })?;
    let digits: String = measured.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{digits}"))
}
