//! Whether only root can have put a file where it stands: every directory on the way and every link belongs to root, and
//! nobody else can write there.

use std::{
    ffi::OsString,
    fs::{self, Metadata},
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

/// As many links as the kernel follows.
pub(super) const LINKS: usize = 40;
const STICKY: u32 = 0o1000;
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Walks a path as the kernel does. A directory that others can write to counts where it is sticky: nobody moves or removes
/// what is another's there, and what follows must be root's.
#[must_use]
pub fn only_root_can_replace(path: &Path) -> bool {
    let mut rest: Vec<OsString> = names(path);
    let mut at = PathBuf::from("/");
    let mut links = 0;
    if !is_roots(&at) {
        return false;
    }
    while let Some(name) = rest.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let Ok(metadata) = fs::symlink_metadata(&next) else { return false };
        if metadata.uid() != 0 {
            return false;
        }
        if metadata.is_symlink() {
            links += 1;
            let (true, Ok(to)) = (links <= LINKS, fs::read_link(&next)) else { return false };
            if to.is_absolute() {
                at = PathBuf::from("/");
            }
            rest.extend(names(&to));
            continue;
        }
        if !is_closed(&metadata) {
            return false;
        }
        at = next;
    }
    true
}

/// Whether only root can have put what stands at a path, or will: a socket, which others may be allowed to write to. One that
/// is reached by a link of that name does not count.
#[must_use]
pub fn only_root_can_place(path: &Path) -> bool {
    let Some(directory) = path.parent() else { return false };
    let closed = fs::metadata(directory).is_ok_and(|found| found.mode() & WRITABLE_BY_OTHERS == 0);
    let linked = fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
    closed && !linked && only_root_can_replace(directory)
}

/// The names of a path, the last first.
pub(super) fn names(path: &Path) -> Vec<OsString> {
    let named = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().rev().filter_map(named).collect()
}

fn is_roots(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.uid() == 0 && is_closed(&metadata))
}

fn is_closed(metadata: &Metadata) -> bool {
    let sticky = metadata.is_dir() && metadata.mode() & STICKY != 0;
    metadata.mode() & WRITABLE_BY_OTHERS == 0 || sticky
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    /// Needs root, as the test runner has it; the folder is below the sticky `/tmp`.
    #[test]
    fn what_others_can_write_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        if dir.path().metadata().unwrap().uid() != 0 {
            return;
        }
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "x").unwrap();
        symlink("file", &link).unwrap();
        assert!(only_root_can_replace(&file) && only_root_can_replace(&link));
        let mode = |path: &Path, mode: u32| fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        mode(&file, 0o666);
        assert!(!only_root_can_replace(&file) && !only_root_can_replace(&link));
        mode(&file, 0o755);
        mode(dir.path(), 0o777);
        assert!(!only_root_can_replace(&file));
        mode(dir.path(), 0o1777);
        assert!(only_root_can_replace(&file));
        chown(&file, Some(1), None).unwrap();
        assert!(!only_root_can_replace(&file) && !only_root_can_replace(&dir.path().join("none")));
        // whoever may be written to, in a directory that only root writes, but for a sticky one
        assert!(!only_root_can_place(&file));
        mode(dir.path(), 0o755);
        assert!(only_root_can_place(&file) && only_root_can_place(&dir.path().join("none")));
        assert!(!only_root_can_place(&link) && !only_root_can_place(&dir.path().join("none/none")));
        mode(dir.path(), 0o1777);
        let other = dir.path().join("theirs");
        symlink("/bin/sh", &other).unwrap();
        assert!(only_root_can_replace(&other));
        std::os::unix::fs::lchown(&other, Some(1), None).unwrap();
        assert!(!only_root_can_replace(&other), "a link that others can point elsewhere");
    }
}
