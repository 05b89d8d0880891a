//! The chain: how a record becomes a line that carries its own hash and that of the record before, and back.
//!
//! A line is the record as one JSON object that ends in `,"hash":"<64 digits>"}`; the hash is the SHA-256 of the
//! line's bytes before that comma, and so covers `prev`, the hash of the record before.

use std::{
    fmt,
    io::{self, BufRead, Read as _},
    str::{self, FromStr},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::record::{Body, Moment, timestamp};
use crate::hex;

/// Version of the lines' format.
pub(super) const VERSION: u32 = 1;
/// Bytes that a line may have, with its newline. A longer one is not ours.
pub const LINE_MAX: usize = 1024 * 1024;

const SUFFIX_START: &[u8] = b",\"hash\":\"";
const SUFFIX_END: &[u8] = b"\"}";
/// `,"hash":"`, 64 digits, `"}`
const SUFFIX: usize = SUFFIX_START.len() + 64 + SUFFIX_END.len();

/// A SHA-256 of a record, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Hash([u8; 32]);

/// The text is not a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a hash is 64 lower-case hexadecimal digits")]
pub struct BadHash;

impl Hash {
    /// What the first record names as its predecessor.
    pub const ZERO: Self = Self([0; 32]);

    fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(&self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

impl FromStr for Hash {
    type Err = BadHash;

    fn from_str(text: &str) -> Result<Self, BadHash> {
        hex::decode(text).map(Self).ok_or(BadHash)
    }
}

impl TryFrom<String> for Hash {
    type Error = BadHash;

    fn try_from(text: String) -> Result<Self, BadHash> {
        text.parse()
    }
}

impl From<Hash> for String {
    fn from(hash: Hash) -> Self {
        hash.to_string()
    }
}

/// The last record of a log: its number and its hash. Also what the head file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Number of the last record; 0 where there is none yet.
    pub n: u64,
    /// Its hash.
    pub hash: Hash,
}

impl Head {
    /// The head of an empty log.
    pub const START: Self = Self { n: 0, hash: Hash::ZERO };
}

/// Who writes: the same in every record of one run of the agent.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) host: String,
    pub(super) boot: String,
}

#[derive(Serialize)]
struct Unsealed<'a> {
    v: u32,
    n: u64,
    #[serde(with = "timestamp")]
    time: Timestamp,
    boot_ns: u64,
    host: &'a str,
    boot: &'a str,
    #[serde(flatten)]
    body: &'a Body,
    prev: Hash,
}

/// The line that follows `head`, without its newline, and the head that it makes.
pub(super) fn seal(head: Head, origin: &Origin, body: &Body, when: Moment) -> serde_json::Result<(String, Head)> {
    let Moment { time, boot_ns } = when;
    let (host, boot) = (origin.host.as_str(), origin.boot.as_str());
    let n = head.n + 1;
    let mut line =
        serde_json::to_string(&Unsealed { v: VERSION, n, time, boot_ns, host, boot, body, prev: head.hash })?;
    line.pop();
    let hash = Hash::of(line.as_bytes());
    line.push_str(&format!(",\"hash\":\"{hash}\"}}"));
    Ok((line, Head { n, hash }))
}

/// The hash that a line (without its newline) states. None: it does not end as a record does.
pub(super) fn stated_hash(line: &[u8]) -> Option<Hash> {
    let start = line.len().checked_sub(SUFFIX)?;
    let digits = line[start..].strip_prefix(SUFFIX_START)?.strip_suffix(SUFFIX_END)?;
    str::from_utf8(digits).ok()?.parse().ok()
}

/// Whether a line (without its newline) has the hash that it states.
pub(super) fn is_sealed(line: &[u8]) -> bool {
    stated_hash(line).is_some_and(|hash| hash == Hash::of(&line[..line.len() - SUFFIX]))
}

/// What every version-1 record has, whatever its type, known to this program or not.
#[derive(Debug, Deserialize)]
pub(super) struct Envelope {
    pub(super) v: u32,
    pub(super) n: u64,
    #[serde(with = "timestamp")]
    pub(super) time: Timestamp,
    pub(super) boot_ns: u64,
    pub(super) boot: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) prev: Hash,
}

/// One read of [`next_line`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    /// A line; its newline is not in the buffer.
    Complete,
    /// The rest of the input, without a newline.
    Unfinished,
    /// More than [`LINE_MAX`]; it was skipped, and the buffer is of no use.
    TooLong {
        /// Its bytes, with the newline if it has one.
        bytes: u64,
    },
    /// Nothing was left.
    End,
}

/// Reads the next line into `buffer`, never more than [`LINE_MAX`] bytes of it.
pub(super) fn next_line(input: &mut impl BufRead, buffer: &mut Vec<u8>) -> io::Result<Line> {
    buffer.clear();
    let read = input.by_ref().take(LINE_MAX as u64).read_until(b'\n', buffer)?;
    if buffer.pop_if(|byte| *byte == b'\n').is_some() {
        return Ok(Line::Complete);
    }
    if read < LINE_MAX {
        return Ok(if read == 0 { Line::End } else { Line::Unfinished });
    }
    let rest = input.skip_until(b'\n')?;
    Ok(Line::TooLong { bytes: (read + rest) as u64 })
}
