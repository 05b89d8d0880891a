//! Where the file systems are that the tests need, as mountinfo tells.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::registry::Lacking;

/// Mount points of this mount namespace with their file system type, in the order in which they were mounted.
fn list() -> Result<Vec<(PathBuf, String)>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo cannot be read")?;
    Ok(text.lines().filter_map(parse).collect())
}

/// The cgroup2 mount, the first where there are several.
pub(crate) fn cgroup2() -> Result<PathBuf> {
    let found = all_of("cgroup2")?.into_iter().next();
    found.context("cgroup2 is mounted nowhere: mount -t cgroup2 none /sys/fs/cgroup")
}

/// The mount points of all file systems of type `kind`.
pub(crate) fn all_of(kind: &str) -> Result<Vec<PathBuf>> {
    Ok(list()?.into_iter().filter(|(_, found)| found == kind).map(|(path, _)| path).collect())
}

/// Whether `path` is the mount point of a file system of type `kind`.
pub(crate) fn is(path: &Path, kind: &str) -> Result<bool> {
    Ok(list()?.iter().rev().find(|(at, _)| at == path).is_some_and(|(_, found)| found == kind))
}

/// For tests of what a chroot does not show: there the root directory is no mount.
pub(crate) fn root_is_a_mount() -> Result<()> {
    if list()?.iter().any(|(at, _)| at == Path::new("/")) {
        return Ok(());
    }
    Err(Lacking("the root directory is no mount here (chroot)".to_owned()).into())
}

/// The mount points at or below `path`, the last mounted first.
pub(crate) fn below(path: &Path) -> Result<Vec<PathBuf>> {
    Ok(list()?.into_iter().rev().map(|(at, _)| at).filter(|at| at.starts_with(path)).collect())
}

/// Mounts of a test, taken away with it. Those of a test that crashed are swept with its folder.
#[derive(Debug, Default)]
pub(crate) struct Mounted(Vec<PathBuf>);

impl Mounted {
    /// Mounts a file system of type `kind` at `at`; without a kind, binds `from` there.
    pub(crate) fn add(&mut self, (from, kind): (&str, Option<&str>), at: &Path, options: Option<&str>) -> Result<()> {
        let flags = if kind.is_some() { MsFlags::empty() } else { MsFlags::MS_BIND };
        mount(Some(from), at, kind, flags, options)
            .with_context(|| format!("{} cannot be mounted at {}", kind.unwrap_or(from), at.display()))?;
        self.0.push(at.to_owned());
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for at in self.0.iter().rev() {
            // what is mounted still is found where the test's folder cannot be removed
            let _ = umount2(at, MntFlags::MNT_DETACH);
        }
    }
}

fn parse(line: &str) -> Option<(PathBuf, String)> {
    let (left, right) = line.split_once(" - ")?;
    Some((PathBuf::from(left.split(' ').nth(4)?), right.split(' ').next()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line_with_and_without_optional_fields() {
        for line in [
            "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw",
            "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:7 master:1 - cgroup2 cgroup2 rw",
        ] {
            assert_eq!(parse(line), Some((PathBuf::from("/sys/fs/cgroup/unified"), "cgroup2".to_owned())));
        }
    }
}
