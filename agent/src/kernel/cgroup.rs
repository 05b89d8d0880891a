//! The cgroup that all sessions' cgroups stand in, and where it lies in the kernel's tree.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::KernelError;
use crate::made::Made;

/// Inode of the initial cgroup namespace (`PROC_CGROUP_INIT_INO`, `include/linux/proc_ns.h`).
const INITIAL_NAMESPACE: u64 = 0xefff_fffb;

/// A cgroup by path, id and depth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupRoot {
    /// Its directory.
    pub path: PathBuf,
    /// Its id, which is the directory's inode number.
    pub id: u64,
    /// Its depth; the root of the tree is 0.
    pub level: u32,
}

impl CgroupRoot {
    /// Looks at the cgroup `path` below the cgroup2 mount point `mount`, and makes it if it is not there.
    pub fn create(path: &Path, mount: &Path, made: &mut Made) -> Result<Self, KernelError> {
        if path == mount || !path.starts_with(mount) {
            let remedy = "name a directory in the cgroup2 tree with --cgroup";
            return Err(KernelError::NotBelow { path: path.into(), above: mount.into(), remedy });
        }
        made.directory(path, 0o755).map_err(KernelError::file("make cgroup", path))?;
        Self::open(path, mount)
    }

    /// Looks at an existing cgroup.
    pub fn open(path: &Path, mount: &Path) -> Result<Self, KernelError> {
        let namespace = Path::new("/proc/self/ns/cgroup");
        let initial = fs::metadata(namespace).map_err(KernelError::file("look at", namespace))?.ino();
        if initial != INITIAL_NAMESPACE {
            return Err(KernelError::CgroupNamespace);
        }
        let real = path.canonicalize().map_err(KernelError::file("look at cgroup", path))?;
        let mount = mount.canonicalize().map_err(KernelError::file("look at", mount))?;
        let Ok(below) = real.strip_prefix(&mount) else {
            let remedy = "name a directory in the cgroup2 tree";
            return Err(KernelError::NotBelow { path: real, above: mount, remedy });
        };
        let id = fs::metadata(&real).map_err(KernelError::file("look at cgroup", &real))?.ino();
        let level = u32::try_from(below.components().count()).unwrap_or(u32::MAX);
        Ok(Self { path: real, id, level })
    }

    /// True where `path`, the name of a cgroup's directory, is this cgroup or lies below it.
    #[must_use]
    pub fn holds(&self, path: &Path) -> bool {
        path.starts_with(&self.path)
    }
}
