//! What exec rules can name beside paths: classes of programs, digests, first arguments; and a program as the kernel sees
//! it when it is started.

use std::{fmt, path::Path};

use tipstaff_common::{
    place::Place,
    rule::{self, Content, FileId, WORD_BYTES},
};

use super::types::{Effect, Kind};

/// A class of programs: what runs anything that it is given, and files that no rule on a path can vouch for. A kind that
/// denies a class denies it whatever other rules allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProgramClass {
    /// A dynamic loader, started as a program.
    Loader,
    /// A program that is many, by the name that it is called by.
    MultiCall,
    /// A program that is named by a descriptor alone: execveat(2) with an empty path.
    ByDescriptor,
    /// A file that never had a name: memfd_create(2).
    Memfd,
    /// A file that has no name any more.
    Deleted,
    /// A file that was written since the session began, and that members could have written.
    Written,
}

/// Loaders by the beginning of their names, and multi-call programs; as the kernel programs know them.
const LOADERS: [&str; 5] = ["ld-linux", "ld-musl-", "ld-2.", "ld.so", "ld64.so"];
const MULTI_CALL: [&str; 2] = ["busybox", "toybox"];

impl ProgramClass {
    /// All, in the order of `rule::CLASS_*`.
    pub const ALL: [Self; 6] =
        [Self::Loader, Self::MultiCall, Self::ByDescriptor, Self::Memfd, Self::Deleted, Self::Written];

    /// As policies and evidence name it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Loader => "loader",
            Self::MultiCall => "multi-call",
            Self::ByDescriptor => "by-descriptor",
            Self::Memfd => "memfd",
            Self::Deleted => "deleted",
            Self::Written => "written",
        }
    }

    /// `rule::CLASS_*`
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::Loader => rule::CLASS_LOADER,
            Self::MultiCall => rule::CLASS_MULTI_CALL,
            Self::ByDescriptor => rule::CLASS_BY_DESCRIPTOR,
            Self::Memfd => rule::CLASS_MEMFD,
            Self::Deleted => rule::CLASS_DELETED,
            Self::Written => rule::CLASS_WRITTEN,
        }
    }

    /// Its bit in sets of classes.
    #[must_use]
    pub const fn bit(self) -> u32 {
        1 << self.code()
    }

    /// The classes that a file is of by its name.
    #[must_use]
    pub fn of_name(path: &Path) -> u32 {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let starts = |with: &[&str]| with.iter().any(|start| name.starts_with(start));
        let one = |is: bool, class: Self| if is { class.bit() } else { 0 };
        one(starts(&LOADERS), Self::Loader) | one(starts(&MULTI_CALL) || name == "coreutils", Self::MultiCall)
    }
}

impl Kind {
    /// What happens to a program of any class that no rule names.
    #[must_use]
    pub const fn class_default(self) -> Effect {
        match self {
            Self::Ci | Self::Agent => Effect::Deny,
            Self::Service | Self::Operator | Self::Breakglass => Effect::Allow,
        }
    }
}

/// A file's digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileDigest {
    /// SHA-256 of its bytes.
    Bytes([u8; 32]),
    /// What fs-verity measures with SHA-256: of the root of a tree of hashes, and of how the tree is made. The kernel holds
    /// every byte that is read against it, and lets nobody write the file.
    Verity([u8; 32]),
}

impl FileDigest {
    /// The key of a rule that asks for it.
    #[must_use]
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Bytes(_) => "sha256",
            Self::Verity(_) => "verity",
        }
    }

    /// Reads 64 hexadecimal digits, which sha256sum(1) prints. `Err`: what is wrong.
    pub(super) fn of_bytes(text: &str) -> Result<Self, String> {
        Self::parse(text, "sha256sum(1) does").map(Self::Bytes)
    }

    /// The same, as fsverity(1) prints them.
    pub(super) fn of_verity(text: &str) -> Result<Self, String> {
        if text.starts_with("sha512:") {
            return Err("is a SHA-512: enable fs-verity with SHA-256, its default".to_owned());
        }
        Self::parse(text, "fsverity measure does").map(Self::Verity)
    }

    fn parse(text: &str, as_by: &str) -> Result<[u8; 32], String> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        if digits.len() != 64 {
            return Err(format!("has {} characters: a SHA-256 has 64 hexadecimal digits", digits.len()));
        }
        let mut bytes = [0u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.bytes().all(|b| b.is_ascii_hexdigit()));
            let value = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok());
            *byte = value.ok_or_else(|| format!("is no SHA-256: write 64 hexadecimal digits, as {as_by}"))?;
        }
        Ok(bytes)
    }
}

impl fmt::Display for FileDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Bytes(bytes) | Self::Verity(bytes)) = self;
        bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for FileDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A first argument as the kernel looks it up; `None`: it is longer than rules can name.
pub(super) fn word_bytes(word: &[u8]) -> Option<[u8; WORD_BYTES]> {
    let mut bytes = [0; WORD_BYTES];
    bytes.get_mut(..word.len())?.copy_from_slice(word);
    Some(bytes)
}

/// A program that is started, as the kernel's hooks see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program<'a> {
    /// Which file.
    pub file: FileId,
    /// The directories above it in its file system, the nearest first, up to the file system's root.
    pub ancestors: &'a [FileId],
    /// Where it stands, and then the places of `ancestors`.
    pub places: &'a [Place],
    /// What it is now; `None`: what it was when the rules were resolved.
    pub content: Option<Content>,
    /// Somebody has it open to write.
    pub writers: bool,
    /// The classes that the hook sees, a bit each (`ProgramClass::bit`).
    pub classes: u32,
    /// It begins as a script does.
    pub script: bool,
    /// The program is in place: its first argument, if it has one. `None`: it is not.
    pub word: Option<Option<&'a [u8]>>,
}

impl<'a> Program<'a> {
    /// An ordinary file in a place that no rule is about, before it runs.
    #[must_use]
    pub const fn of(file: FileId, ancestors: &'a [FileId]) -> Self {
        Self { file, ancestors, places: &[], content: None, writers: false, classes: 0, script: false, word: None }
    }

    /// Whether it is of a class.
    pub(super) const fn is(&self, class: ProgramClass) -> bool {
        self.classes & class.bit() != 0
    }
}
