//! The text of a policy as it is kept: with each change of a session, and often the same.

use std::{cell::OnceCell, fmt, ops::Deref, rc::Rc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::Error as _};
use serde_json::value::{RawValue, to_raw_value};

/// Copies share it, and what it is as JSON.
#[derive(Clone, Default)]
pub struct PolicyText(Rc<Shared>);

#[derive(Default)]
struct Shared {
    text: String,
    json: OnceCell<Box<RawValue>>,
}

impl From<String> for PolicyText {
    fn from(text: String) -> Self {
        Self(Rc::new(Shared { text, json: OnceCell::new() }))
    }
}

impl From<&str> for PolicyText {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl Deref for PolicyText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0.text
    }
}

impl PartialEq for PolicyText {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0) || **self == **other
    }
}

impl Eq for PolicyText {}

impl fmt::Debug for PolicyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl Serialize for PolicyText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let json = match self.0.json.get() {
            Some(json) => json,
            None => {
                let made = to_raw_value(&self.0.text).map_err(S::Error::custom)?;
                self.0.json.get_or_init(|| made)
            }
        };
        json.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PolicyText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}
