//! Which files a policy's rules name on this host, as the kernel will see them.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::{fd::AsRawFd as _, unix::ffi::OsStringExt as _},
    path::{Path, PathBuf},
};

use tipstaff_common::rule::FileId;

use crate::{
    kernel::{Kernel, KernelError, open_path},
    policy::{ExecTarget, Policy, Resolved},
};

/// Files that are open at once.
const CHUNK: usize = 256;

/// Resolves every exec rule: the program, or the directory and the roots of what is mounted below it. A rule whose file
/// does not exist names nothing.
pub(super) fn rules(kernel: &mut Kernel, policy: &Policy) -> Result<Resolved, KernelError> {
    let mounts = mount_points()?;
    let mut wanted: Vec<(usize, PathBuf)> = Vec::new();
    for (index, rule) in policy.exec.iter().enumerate() {
        match &rule.target {
            ExecTarget::Path(path) => wanted.push((index, path.clone())),
            ExecTarget::Dir(path) => {
                wanted.push((index, path.clone()));
                let real = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
                let below = mounts.iter().filter(|m| m.starts_with(&real) && **m != real);
                wanted.extend(below.map(|m| (index, m.clone())));
            }
        }
    }
    let mut resolved = Resolved { files: vec![Vec::new(); policy.exec.len()] };
    for chunk in wanted.chunks(CHUNK) {
        let paths: Vec<&Path> = chunk.iter().map(|(_, path)| path.as_path()).collect();
        for ((index, _), id) in chunk.iter().zip(identities(kernel, &paths)?) {
            resolved.files[*index].extend(id);
        }
    }
    Ok(resolved)
}

/// Identities of paths, in their order; `None` where there is nothing.
pub(super) fn identities(kernel: &mut Kernel, paths: &[&Path]) -> Result<Vec<Option<FileId>>, KernelError> {
    let mut files = Vec::new();
    let mut places = Vec::new();
    for (place, path) in paths.iter().enumerate() {
        match open_path(path) {
            Ok(file) => {
                files.push(file);
                places.push(place);
            }
            Err(error) if absent(&error) => {}
            Err(error) => return Err(KernelError::file("look at", *path)(error)),
        }
    }
    let mut found = vec![None; paths.len()];
    for (place, id) in places.into_iter().zip(kernel.identities(&files)?) {
        // it is open, so it exists: without its identity a rule would silently name nothing
        found[place] = Some(id.ok_or_else(|| KernelError::Unlisted { path: paths[place].into() })?);
    }
    Ok(found)
}

fn absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG))
}

/// The interpreter that a script names in its first line; `None` for what is no script. Only regular files are opened:
/// the path is a caller's word, and a FIFO would keep the agent waiting.
pub(super) fn interpreter(path: &Path) -> Option<PathBuf> {
    let named = open_path(path).ok()?;
    if !named.metadata().ok()?.is_file() {
        return None;
    }
    let mut head = Vec::new();
    let file = File::open(format!("/proc/self/fd/{}", named.as_raw_fd())).ok()?;
    file.take(256).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?.trim_ascii();
    let name = line.split(|b| b.is_ascii_whitespace()).next().filter(|name| !name.is_empty())?;
    Some(std::ffi::OsString::from_vec(name.to_vec()).into())
}

/// Everything that is mounted, as the agent sees it.
fn mount_points() -> Result<Vec<PathBuf>, KernelError> {
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
        }
    }
}
