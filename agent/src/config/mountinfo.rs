//! Finds cgroup2 among the mounts: pure v2 at `/sys/fs/cgroup`, hybrid at `/sys/fs/cgroup/unified`, or elsewhere.
//!
//! Format: proc_pid_mountinfo(5). Fields are separated by spaces; space, tab, newline and backslash within one are
//! written in octal.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

/// The mount point of the first mount that shows the whole cgroup2 tree of this cgroup namespace.
#[must_use]
pub fn cgroup2(mountinfo: &[u8]) -> Option<PathBuf> {
    mountinfo.split(|&byte| byte == b'\n').find_map(mount_point)
}

fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let mut fields = line.split(|&byte| byte == b' ');
    let root = fields.nth(3)?;
    let mount_point = fields.next()?;
    // any number of optional fields, then a hyphen
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    // another root is a bind mount of a part of the tree
    (kind == b"cgroup2" && root == b"/").then(|| PathBuf::from(OsString::from_vec(unescape(mount_point))))
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &tail[3..];
            }
            None => {
                plain.push(first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Option<String> {
        cgroup2(text.as_bytes()).map(|path| path.display().to_string())
    }

    #[test]
    fn pure_v2() {
        let text = "24 30 0:22 / /proc rw,relatime shared:12 - proc proc rw\n\
                    29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 master:1 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(found(text).as_deref(), Some("/sys/fs/cgroup"));
    }

    #[test]
    fn hybrid() {
        let text = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                    32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                    41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(found(text).as_deref(), Some("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn version_1_only() {
        let text = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs cgroup2 rw,mode=755\n\
                    32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n";
        assert_eq!(found(text), None);
    }

    #[test]
    fn a_bind_mount_of_a_part_does_not_count_and_octal_is_read() {
        let text = "40 31 0:38 /a.slice /mnt/part rw - cgroup2 cgroup2 rw\n\
                    41 31 0:38 / /mnt/a\\040b\\134c rw - cgroup2 cgroup2 rw\n";
        assert_eq!(found(text).as_deref(), Some("/mnt/a b\\c"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(text in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _ = cgroup2(&text);
            let _ = unescape(&text);
        }
    }
}
