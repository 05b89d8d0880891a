//! Which files a policy's rules name on this host, as the kernel will see them.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    net::IpAddr,
    os::{fd::AsRawFd as _, unix::ffi::OsStringExt as _},
    path::{Path, PathBuf},
};

use tipstaff_common::rule::FileId;

use crate::{
    kernel::{Kernel, KernelError, open_path},
    policy::{self, Addresses, ExecTarget, Policy, Resolved, UnixFound, UnixTarget},
};

/// Files that are open at once.
const CHUNK: usize = 256;

/// Where the host's resolvers stand.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Where an identity belongs.
enum For {
    /// `Resolved::files`
    Exec(usize),
    /// `UnixFound::files`
    Unix(usize),
    /// `UnixFound::place`, with the name in the directory.
    Place(usize, Vec<u8>),
}

/// Resolves every rule: a program or socket, or a directory and the roots of what is mounted below it. A rule whose file
/// does not exist names nothing; one for a socket names its place, where the directory exists.
pub(super) fn rules(kernel: &mut Kernel, policy: &Policy) -> Result<Resolved, KernelError> {
    let mounts = mount_points()?;
    let mut wanted: Vec<(For, PathBuf)> = Vec::new();
    for (index, rule) in policy.exec.iter().enumerate() {
        match &rule.target {
            ExecTarget::Path(path) => wanted.push((For::Exec(index), path.clone())),
            ExecTarget::Dir(path) => {
                wanted.extend(tree(path, &mounts).into_iter().map(|root| (For::Exec(index), root)));
            }
        }
    }
    for (index, rule) in policy.unix_rules().iter().enumerate() {
        match &rule.target {
            UnixTarget::Abstract(_) => {}
            UnixTarget::Path(path) => {
                // the place is the socket's own, not that of a link to it
                let real = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
                if let (Some(directory), Some(name)) = (real.parent(), real.file_name()) {
                    wanted.push((For::Place(index, name.as_encoded_bytes().to_vec()), directory.to_owned()));
                }
                wanted.push((For::Unix(index), real));
            }
            UnixTarget::Dir(path) => {
                wanted.extend(tree(path, &mounts).into_iter().map(|root| (For::Unix(index), root)));
            }
        }
    }
    let mut resolved = Resolved {
        files: vec![Vec::new(); policy.exec.len()],
        unix: vec![UnixFound::default(); policy.unix_rules().len()],
        resolvers: resolvers(policy)?,
    };
    for chunk in wanted.chunks(CHUNK) {
        let paths: Vec<&Path> = chunk.iter().map(|(_, path)| path.as_path()).collect();
        for ((what, _), id) in chunk.iter().zip(identities(kernel, &paths)?) {
            match what {
                For::Exec(index) => resolved.files[*index].extend(id),
                For::Unix(index) => resolved.unix[*index].files.extend(id),
                For::Place(index, name) => resolved.unix[*index].place = id.map(|id| (id, name.clone())),
            }
        }
    }
    Ok(resolved)
}

/// A directory and the roots of what is mounted below it.
fn tree(path: &Path, mounts: &[PathBuf]) -> Vec<PathBuf> {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let below = mounts.iter().filter(|m| m.starts_with(&real) && **m != real).cloned();
    std::iter::once(path.to_owned()).chain(below).collect()
}

/// The host's resolvers, where the policy speaks of them.
fn resolvers(policy: &Policy) -> Result<Vec<IpAddr>, KernelError> {
    if !policy.net.iter().any(|rule| rule.to == Addresses::Resolvers) {
        return Ok(Vec::new());
    }
    match fs::read(RESOLV_CONF) {
        Ok(text) => Ok(policy::resolvers(&String::from_utf8_lossy(&text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(policy::resolvers("")),
        Err(error) => Err(KernelError::file("read", RESOLV_CONF)(error)),
    }
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
