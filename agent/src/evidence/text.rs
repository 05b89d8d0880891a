//! Text that came from the kernel or from a workload: paths and arguments are bytes, not always UTF-8.
//!
//! In a record it is a JSON string in which `\` stands as `\\` and a byte that is no part of valid UTF-8 as `\x` and
//! two hexadecimal digits; so every byte string has exactly one spelling, and it reads back to the same bytes.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use crate::hex;

/// Bytes that are text most of the time.
#[derive(Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Text(Vec<u8>);

/// The string is not how a [`Text`] is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a backslash in {text:?} is followed by neither a backslash nor x and two digits of an invalid byte")]
pub struct BadText {
    text: String,
}

impl Text {
    /// The bytes as they were.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A list of arguments of at most `limit` bytes in all, and whether something was left out to keep to that.
    pub fn list<T: AsRef<[u8]>>(arguments: impl IntoIterator<Item = T>, limit: usize) -> (Vec<Self>, bool) {
        let mut list = Vec::new();
        let mut room = limit;
        for argument in arguments {
            let bytes = argument.as_ref();
            let Some(rest) = room.checked_sub(bytes.len().max(1)) else {
                if room > 0 {
                    list.push(Self::from(&bytes[..room.min(bytes.len())]));
                }
                return (list, true);
            };
            room = rest;
            list.push(Self::from(bytes));
        }
        (list, false)
    }

    fn escaped(&self) -> String {
        let mut escaped = String::with_capacity(self.0.len());
        for chunk in self.0.utf8_chunks() {
            escaped.push_str(&chunk.valid().replace('\\', "\\\\"));
            for byte in chunk.invalid() {
                escaped.push_str("\\x");
                escaped.push_str(&hex::encode(&[*byte]));
            }
        }
        escaped
    }
}

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for Text {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<Vec<u8>> for Text {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.escaped()
    }
}

impl TryFrom<String> for Text {
    type Error = BadText;

    fn try_from(written: String) -> Result<Self, BadText> {
        let mut bytes = Vec::with_capacity(written.len());
        let mut rest = written.as_str();
        while let Some((plain, escape)) = rest.split_once('\\') {
            bytes.extend_from_slice(plain.as_bytes());
            let hexadecimal = escape.strip_prefix('x').and_then(|tail| tail.get(..2)).and_then(hex::decode::<1>);
            match hexadecimal {
                Some([byte]) => bytes.push(byte),
                None if escape.starts_with('\\') => bytes.push(b'\\'),
                None => return Err(BadText { text: written }),
            }
            rest = &escape[if hexadecimal.is_some() { 3 } else { 1 }..];
        }
        bytes.extend_from_slice(rest.as_bytes());
        // one spelling: `\x41` for an A, or an escape where the bytes make valid UTF-8, was not written by us
        let text = Self(bytes);
        if text.escaped() == written { Ok(text) } else { Err(BadText { text: written }) }
    }
}

impl fmt::Display for Text {
    /// Safe for a terminal: control characters and what turns the direction of text come out as escapes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.escaped().chars() {
            if character.is_control() || turns_direction(character) {
                write!(f, "{}", character.escape_unicode())?;
            } else {
                f.write_char(character)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.escaped())
    }
}

fn turns_direction(character: char) -> bool {
    matches!(character, '\u{061c}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(bytes: &[u8]) -> String {
        String::from(Text::from(bytes))
    }

    proptest! {
        #[test]
        fn every_byte_string_comes_back(bytes in any::<Vec<u8>>()) {
            let text = Text::from(bytes.clone());
            let json = serde_json::to_string(&text).expect("serialises");
            let back: Text = serde_json::from_str(&json).expect("deserialises");
            prop_assert_eq!(back.as_bytes(), bytes);
        }

        #[test]
        fn what_is_accepted_has_one_spelling(text in "[\\\\x0-9a-f/é]{0,12}") {
            if let Ok(parsed) = Text::try_from(text.clone()) {
                prop_assert_eq!(String::from(parsed), text);
            }
        }
    }

    #[test]
    fn spelling() {
        assert_eq!(written(b"/usr/bin/git"), "/usr/bin/git");
        assert_eq!(written("/tmp/é".as_bytes()), "/tmp/é");
        assert_eq!(written(b"a\\xffb"), "a\\\\xffb");
        assert_eq!(written(b"a\xffb"), "a\\xffb");
        for bad in ["\\", "a\\n", "\\x4", "\\x41", "\\xc3\\xa9"] {
            assert!(Text::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_terminal_gets_no_control_characters() {
        assert_eq!(Text::from("a\u{1b}[2Jb\n\u{202e}c").to_string(), "a\\u{1b}[2Jb\\u{a}\\u{202e}c");
    }

    #[test]
    fn lists_are_cut_by_bytes() {
        let plain = |list: &[Text]| list.iter().map(Text::to_string).collect::<Vec<_>>();
        let (list, cut) = Text::list(["git", "", "diff"], 8);
        assert_eq!((plain(&list), cut), (vec!["git".into(), String::new(), "diff".into()], false));
        let (list, cut) = Text::list(["git", "diff"], 5);
        assert_eq!((plain(&list), cut), (vec!["git".into(), "di".into()], true));
        let (list, cut) = Text::list(["git", ""], 3);
        assert_eq!((plain(&list), cut), (vec!["git".into()], true));
    }
}
