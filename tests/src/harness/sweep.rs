//! Takes away what a test left: of this run at once, and of runs that crashed at the next start.
//!
//! Everything a test makes outside its own folder carries its process id in its name; nothing else is ever touched.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};

use super::{cgroup::Cgroup, mounts, wait};

const PREFIX: &str = "tipstaff-test-";
const BPFFS: &str = "/sys/fs/bpf";

/// What everything of one sandbox is called.
pub(crate) fn name(pid: u32) -> String {
    format!("{PREFIX}{pid}")
}

/// Where the sandbox `name` has its pins, where bpffs is mounted for all.
pub(crate) fn shared_pins(name: &str) -> Option<PathBuf> {
    let mounted = mounts::is(Path::new(BPFFS), "bpf").unwrap_or(false);
    mounted.then(|| Path::new(BPFFS).join(name))
}

/// The folder of the sandbox `name`.
pub(crate) fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(name)
}

/// Removes what sandboxes of dead processes left; returns their names.
pub(crate) fn dead() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for place in [mounts::cgroup2()?, PathBuf::from(BPFFS), std::env::temp_dir()] {
        let Ok(entries) = fs::read_dir(place) else { continue };
        names.extend(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).filter(|n| is_dead(n)));
    }
    names.sort();
    names.dedup();
    for name in &names {
        one(name)?;
    }
    Ok(names)
}

/// Kills and removes all that is the sandbox's.
pub(crate) fn one(name: &str) -> Result<()> {
    let cgroup = Cgroup::at(mounts::cgroup2()?.join(name));
    if cgroup.path().exists() {
        cgroup.remove()?;
    }
    if let Some(pins) = shared_pins(name)
        && pins.exists()
    {
        fs::remove_dir_all(&pins).with_context(|| format!("pins {} cannot be removed", pins.display()))?;
    }
    let folder = folder(name);
    for mount in mounts::below(&folder)? {
        umount2(&mount, MntFlags::MNT_DETACH).with_context(|| format!("{} cannot be unmounted", mount.display()))?;
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("{} cannot be removed", folder.display()))?;
    }
    Ok(())
}

fn is_dead(name: &str) -> bool {
    name.strip_prefix(PREFIX).and_then(|rest| rest.parse().ok()).is_some_and(wait::gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_dead_are_swept() {
        assert!(!is_dead(&name(std::process::id())));
        assert!(!is_dead("tipstaff-test-"));
        assert!(!is_dead("tipstaff-test-x"));
        assert!(!is_dead("something-else-999999999"));
        // above the largest pid_max
        assert!(is_dead(&name(5_000_000)));
    }
}
