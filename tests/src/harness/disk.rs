//! A folder on a file system that tells whether a file is still the same: rules can ask for digests there.

use std::fs;

use anyhow::Result;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FsType, XFS_SUPER_MAGIC, statfs};

use super::{mounts::Mounted, registry::Lacking, sandbox::Sandbox, verity, wait::in_guest};

/// In a guest, whose files are all in memory, a disk of the test's own; elsewhere the folder of its programs, where that is
/// on a disk.
pub(crate) fn on_disk(s: &Sandbox, mounts: &mut Mounted) -> Result<String> {
    const KNOWN: [FsType; 3] = [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC];
    if !in_guest() {
        let system = statfs(s.folder())?.filesystem_type();
        return if KNOWN.contains(&system) {
            Ok(s.bin())
        } else {
            Err(Lacking(format!("{} is not on ext4, XFS or btrfs", s.folder().display())).into())
        };
    }
    let (device, at) = (verity::disk(&s.fresh("image"))?, s.fresh("disk"));
    fs::create_dir(&at)?;
    mounts.add((&device, Some("ext4")), &at, None)?;
    Ok(at.display().to_string())
}
