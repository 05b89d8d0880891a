//! What paths lead to on this host, as the kernel's hooks will see it; which interpreter a script names; what is
//! mounted.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _},
    os::{
        fd::AsRawFd as _,
        unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use tipstaff_common::rule::FileId;

use crate::kernel::{Kernel, KernelError, Seen, open_path};

/// How often a path is looked at that leads to something else each time.
const LOOKS: usize = 16;

/// What a path leads to.
pub(super) struct Found {
    /// As the hooks see it.
    pub(super) seen: Seen,
    /// It is a directory.
    pub(super) directory: bool,
    /// How many names it has.
    pub(super) links: u64,
    /// Its own path, without links.
    pub(super) name: PathBuf,
}

/// Identities of paths, in their order; `None` where there is nothing.
pub(super) fn identities(kernel: &mut Kernel, paths: &[&Path]) -> Result<Vec<Option<FileId>>, KernelError> {
    Ok(look(kernel, paths)?.into_iter().map(|found| found.map(|found| found.seen.id)).collect())
}

/// What paths lead to, in their order; `None` where there is nothing. What it says of a file was so while the path led to it:
/// what is replaced later is another file, or not as it was, and the kernel denies it.
pub(super) fn look(kernel: &mut Kernel, paths: &[&Path]) -> Result<Vec<Option<Found>>, KernelError> {
    let mut found: Vec<Option<Found>> = paths.iter().map(|_| None).collect();
    let mut left: Vec<usize> = (0..paths.len()).collect();
    for _ in 0..LOOKS {
        left = look_once(kernel, paths, &left, &mut found)?;
        if left.is_empty() {
            return Ok(found);
        }
    }
    let restless = io::Error::other("it is replaced faster than it can be looked at");
    Err(KernelError::file("look at", paths[left[0]])(restless))
}

/// Looks at the paths in these places; the places of those that lead to something else by now.
fn look_once(
    kernel: &mut Kernel,
    paths: &[&Path],
    wanted: &[usize],
    found: &mut [Option<Found>],
) -> Result<Vec<usize>, KernelError> {
    let mut files = Vec::new();
    let mut places = Vec::new();
    for &place in wanted {
        match open_path(paths[place]) {
            Ok(file) => {
                files.push(file);
                places.push(place);
            }
            Err(error) if absent(&error) => {}
            Err(error) => return Err(KernelError::file("look at", paths[place])(error)),
        }
    }
    let mut moved = Vec::new();
    for ((place, file), seen) in places.into_iter().zip(&files).zip(kernel.see(&files)?) {
        let path = paths[place];
        // it is open, so it exists: without its identity a rule would silently name nothing
        let seen = seen.ok_or_else(|| KernelError::Unlisted { path: path.into() })?;
        let metadata = file.metadata().map_err(KernelError::file("look at", path))?;
        if !leads_to(path, &metadata) {
            moved.push(place);
            continue;
        }
        let name = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
        found[place] = Some(Found { seen, directory: metadata.is_dir(), links: metadata.nlink(), name });
    }
    Ok(moved)
}

/// Whether the path leads to this file now. The file is open, so that no other can have its number.
fn leads_to(path: &Path, file: &fs::Metadata) -> bool {
    let now = open_path(path).and_then(|now| now.metadata());
    now.is_ok_and(|now| (now.dev(), now.ino()) == (file.dev(), file.ino()))
}

fn absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG))
}

/// What a file begins with, as much as the kernel looks at. Only regular files are opened: the path is a caller's word, and a
/// FIFO would keep the agent waiting.
fn head(path: &Path) -> Option<Vec<u8>> {
    let named = open_path(path).ok()?;
    if !named.metadata().ok()?.is_file() {
        return None;
    }
    let mut head = Vec::new();
    let file = File::open(format!("/proc/self/fd/{}", named.as_raw_fd())).ok()?;
    file.take(256).read_to_end(&mut head).ok()?;
    Some(head)
}

/// Whether it is a file that the kernel does not load by itself: a script, or one of a format that somebody registered a program
/// for (`binfmt_misc`), or nothing that runs.
pub(super) fn is_script(path: &Path) -> bool {
    head(path).is_some_and(|head| !head.starts_with(b"\x7fELF"))
}

/// The interpreter that a script names in its first line; `None` for what is no script.
pub(super) fn interpreter(path: &Path) -> Option<PathBuf> {
    let head = head(path)?;
    let line = head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?.trim_ascii();
    let name = line.split(|b| b.is_ascii_whitespace()).next().filter(|name| !name.is_empty())?;
    Some(std::ffi::OsString::from_vec(name.to_vec()).into())
}

/// Everything that is mounted, as the agent sees it.
pub(super) fn mount_points() -> Result<BTreeSet<PathBuf>, KernelError> {
    let path = "/proc/self/mountinfo";
    let text = fs::read(path).map_err(KernelError::file("read", path))?;
    let lines = text.split(|b| *b == b'\n');
    Ok(lines.filter_map(|l| l.split(|b| *b == b' ').nth(4)).map(unescape).collect())
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(b"/a\\040b\\134c"), PathBuf::from("/a b\\c"));
        assert_eq!(unescape(b"/plain\\09"), PathBuf::from("/plain\\09"));
    }

    #[test]
    fn a_script_names_its_interpreter() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("script");
        for (text, expected) in [
            ("#!/bin/sh\necho", Some("/bin/sh")),
            ("#! /usr/bin/env python3\n", Some("/usr/bin/env")),
            ("#!\n", None),
            ("echo", None),
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(interpreter(&file), expected.map(PathBuf::from), "{text:?}");
            assert!(is_script(&file), "{text:?}");
        }
        fs::write(&file, b"\x7fELF\x02").unwrap();
        assert_eq!((interpreter(&file), is_script(&file), is_script(dir.path())), (None, false, false));
    }
}
