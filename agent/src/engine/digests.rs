//! Digests of files, each taken under a read lease that is held as long as a session needs it: nobody opens the file to
//! write before the kernel's table says that it is not what it was. What fs-verity measures is asked, not taken.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    os::fd::AsRawFd as _,
    path::Path,
};

use nix::sys::statfs::{FsType, fstatfs};
use sha2::{Digest as _, Sha256};
use tipstaff_common::rule::{Content, FileId};

use crate::{
    kernel::{Kernel, KernelError, has_lease, measure_verity, open_path, take_lease},
    policy::{FileDigest, Hashed},
};

/// File systems whose identities and leases speak for the bytes (`include/uapi/linux/magic.h`): ext2 to 4, XFS, btrfs,
/// F2FS, SquashFS, EROFS. Not tmpfs: a buffer that io_uring keeps of a mapping (`IORING_REGISTER_BUFFERS`) writes the
/// file's bytes when the mapping and the descriptor are long gone, under a lease, and moves no time (6.18, measured).
const ON_DISK: [i64; 6] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x7371_7368, 0xe0f5_e1e2];
/// Of these the ones that have fs-verity, and keep the promise themselves: ext4, btrfs, F2FS.
const WITH_VERITY: [i64; 3] = [0xef53, 0x9123_683e, 0xf2f5_2010];

/// Bytes of the largest file that is hashed: nothing else is done meanwhile.
const LARGEST: u64 = 1 << 30;
/// Files whose leases are held at once: each is an open descriptor.
const HELD: usize = 256;

/// What was hashed, and the leases.
#[derive(Debug, Default)]
pub(super) struct Digests {
    held: BTreeMap<FileId, Held>,
    /// Files that had another digest than their rule asks for. No lease is kept on them: at worst they stay denied.
    others: BTreeMap<FileId, (Content, FileDigest)>,
    /// How often a file's bytes were read for it.
    taken: u64,
}

#[derive(Debug)]
struct Held {
    /// The lease goes with the descriptor.
    file: File,
    content: Content,
    digest: FileDigest,
}

impl Digests {
    /// The digest of the file at `path`, which is `id`, and what the file was when it was hashed. Its lease is held where
    /// the digest is the one that is `wanted`.
    pub(super) fn hash(
        &mut self,
        kernel: &mut Kernel,
        path: &Path,
        (id, wanted): (FileId, FileDigest),
    ) -> Result<(Hashed, Option<Content>), KernelError> {
        let not = |why: String| Ok((Hashed::Not(why), None));
        let unknown = |why: &str| Ok((Hashed::Unknown(why.to_owned()), None));
        let file = match open(path) {
            Ok(file) => file,
            Err(error) => return not(format!("cannot be read: {error}")),
        };
        let Some(Some(now)) = kernel.see(std::slice::from_ref(&file))?.pop() else {
            return not("cannot be identified".into());
        };
        if now.id != id {
            return not("was replaced while it was looked at".into());
        }
        let system = fstatfs(&file).map(|s| s.filesystem_type());
        let is = |known: &[i64]| system.is_ok_and(|system| known.iter().any(|magic| system == FsType(*magic)));
        if matches!(wanted, FileDigest::Verity(_)) {
            // the word of a file system whose server could say anything (FUSE hands the question on) is none
            if !is(&WITH_VERITY) {
                return unknown("is on a file system without fs-verity");
            }
            // nobody can write such a file: there is nothing to hash, and no lease to hold
            return match measure_verity(&file) {
                Ok(digest) => Ok((Hashed::As(FileDigest::Verity(digest)), Some(now.content))),
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENODATA) => not("has no fs-verity: fsverity enable gives it one, for ever".into()),
                    Some(libc::ENOTTY | libc::EOPNOTSUPP) => unknown("is on a file system without fs-verity"),
                    Some(libc::EOVERFLOW) => not("has an fs-verity digest that is no SHA-256".into()),
                    _ => not(format!("has an fs-verity digest that cannot be read: {error}")),
                },
            };
        }
        if let Some(held) = self.held.get(&id).filter(|held| held.content == now.content && has_lease(&held.file)) {
            return Ok((Hashed::As(held.digest), Some(held.content)));
        }
        if let Some((_, digest)) = self.others.get(&id).filter(|(then, other)| *then == now.content && *other != wanted)
        {
            return Ok((Hashed::As(*digest), Some(now.content)));
        }
        if self.held.len() >= HELD && !self.held.contains_key(&id) {
            return not(format!("is not hashed: the digests of {HELD} other files are held, and no more can be"));
        }
        if !is(&ON_DISK) {
            return unknown("is on a file system that does not tell whether a file is still the same");
        }
        if let Err(error) = take_lease(&file) {
            return not(match error.raw_os_error() {
                Some(libc::EAGAIN) => "is open to write: what is hashed could be changed".into(),
                _ => format!("cannot be leased while it is hashed: {error}"),
            });
        }
        // from here on nobody can write it: what it is now is what is hashed
        let before = kernel.see(std::slice::from_ref(&file))?.pop().flatten();
        if file.metadata().map_or(true, |metadata| metadata.len() > LARGEST) {
            return not("is not hashed: it is larger than 1 GiB".into());
        }
        self.taken += 1;
        let digest = match digest(&file) {
            Ok(digest) => digest,
            Err(error) => return not(format!("cannot be read: {error}")),
        };
        let Some(seen) = before.filter(|seen| seen.id == id && has_lease(&file)) else {
            return not("was opened to write while it was hashed".into());
        };
        if digest != wanted {
            if self.others.len() >= HELD {
                self.others.clear();
            }
            self.others.insert(id, (seen.content, digest));
            return Ok((Hashed::As(digest), Some(seen.content)));
        }
        self.held.insert(id, Held { file, content: seen.content, digest });
        Ok((Hashed::As(digest), Some(seen.content)))
    }

    /// How often a digest was taken.
    pub(super) const fn taken(&self) -> u64 {
        self.taken
    }

    /// Files that somebody waits to write.
    pub(super) fn wanted_back(&self) -> Vec<FileId> {
        self.held.iter().filter(|(_, held)| !has_lease(&held.file)).map(|(id, _)| *id).collect()
    }

    /// Gives leases back.
    pub(super) fn let_go(&mut self, mut needed: impl FnMut(&FileId) -> bool) {
        self.held.retain(|id, _| needed(id));
    }
}

/// Opens a regular file to read. A FIFO or device is not opened.
fn open(path: &Path) -> io::Result<File> {
    let named = open_path(path)?;
    if !named.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    File::open(format!("/proc/self/fd/{}", named.as_raw_fd()))
}

fn digest(mut file: &File) -> io::Result<FileDigest> {
    let mut hasher = Sha256::new();
    let mut part = vec![0; 1 << 17];
    loop {
        match file.read(&mut part)? {
            0 => return Ok(FileDigest::Bytes(hasher.finalize().into())),
            length => hasher.update(&part[..length]),
        }
    }
}
