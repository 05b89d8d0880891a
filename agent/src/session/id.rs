//! The name of a session: 128 random bits, never reused, written as 32 lower-case hexadecimal digits.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::hex;

/// A session's id. The bits are the caller's: this module has no source of randomness.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SessionId([u8; 16]);

/// The text is not a session id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("session id {text:?} is not 32 lower-case hexadecimal digits: copy it whole from `tipstaff ps`")]
pub struct BadSessionId {
    text: String,
}

impl SessionId {
    /// Makes an id from bytes that must come from the system's random source.
    #[must_use]
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Whether the id, as written, starts with `prefix`. An empty prefix names no session.
    #[must_use]
    pub fn has_prefix(&self, prefix: &str) -> bool {
        !prefix.is_empty() && hex::encode(&self.0).starts_with(prefix)
    }
}

impl fmt::Display for SessionId {
    /// `{:.8}` shows the first eight digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(&self.0))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

impl FromStr for SessionId {
    type Err = BadSessionId;

    fn from_str(text: &str) -> Result<Self, BadSessionId> {
        hex::decode(text).map(Self).ok_or_else(|| BadSessionId { text: text.to_owned() })
    }
}

impl TryFrom<String> for SessionId {
    type Error = BadSessionId;

    fn try_from(text: String) -> Result<Self, BadSessionId> {
        text.parse()
    }
}

impl From<SessionId> for String {
    fn from(id: SessionId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00112233445566778899aabbccddeeff";

    fn id() -> SessionId {
        TEXT.parse().expect("a valid id")
    }

    #[test]
    fn one_spelling_both_ways() {
        assert_eq!(id().to_string(), TEXT);
        assert_eq!(format!("{:.8}", id()), "00112233");
        assert_eq!(serde_json::to_string(&id()).expect("serialises"), format!("\"{TEXT}\""));
        assert_eq!(serde_json::from_str::<SessionId>(&format!("\"{TEXT}\"")).expect("deserialises"), id());
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in ["", &TEXT[1..], &TEXT.to_uppercase(), &format!("{TEXT}0"), &format!(" {}", &TEXT[1..])] {
            assert!(text.parse::<SessionId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn prefixes() {
        assert!(id().has_prefix("0") && id().has_prefix("001122") && id().has_prefix(TEXT));
        assert!(!id().has_prefix("") && !id().has_prefix("1") && !id().has_prefix(&format!("{TEXT}0")));
    }
}
