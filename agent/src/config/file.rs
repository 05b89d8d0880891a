//! The configuration file: TOML whose every key is known, with line and column for what is wrong.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};

use super::ConfigError;
use crate::duration;

/// What a file may say; all of it optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Content {
    #[serde(deserialize_with = "attach")]
    pub(super) attach: Option<Attach>,
    pub(super) paths: PathKeys,
    pub(super) groups: GroupKeys,
    pub(super) limits: LimitKeys,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PathKeys {
    #[serde(deserialize_with = "absolute")]
    pub(super) state: Option<PathBuf>,
    #[serde(deserialize_with = "absolute")]
    pub(super) runtime: Option<PathBuf>,
    #[serde(deserialize_with = "absolute")]
    pub(super) pins: Option<PathBuf>,
    #[serde(deserialize_with = "absolute")]
    pub(super) cgroup: Option<PathBuf>,
    #[serde(deserialize_with = "absolute")]
    pub(super) policies: Option<PathBuf>,
    #[serde(deserialize_with = "absolute")]
    pub(super) users: Option<PathBuf>,
    #[serde(deserialize_with = "absolute")]
    pub(super) evidence: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct GroupKeys {
    #[serde(deserialize_with = "read_group")]
    pub(super) read: Option<Group>,
    #[serde(deserialize_with = "operate_group")]
    pub(super) operate: Option<Group>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitKeys {
    #[serde(deserialize_with = "time_to_live")]
    pub(super) max_ttl: Option<Duration>,
}

/// Where the programs on cgroups are attached, and so which sockets they see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attach {
    /// To the cgroup of sessions: the sockets that were made in it.
    #[default]
    Sessions,
    /// To the root of the tree, or of an agent's confinement: those that a member got from elsewhere too.
    Root,
}

impl Attach {
    /// As the file and all output spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::Root => "root",
        }
    }
}

/// A group of users, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Group {
    /// The name that holds where the configuration says nothing.
    Default(&'static str),
    /// A name from the file.
    Named {
        /// The key that names it.
        key: String,
        /// The name.
        name: String,
    },
    /// A group id from the file.
    Id(u32),
}

pub(super) fn parse(path: &Path, text: &str) -> Result<Content, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        let message = error.message().replace('\n', ": ");
        ConfigError::Parse { path: path.to_owned(), line, column, message }
    })
}

/// Line and column, both from 1, of a byte offset; the column counts characters.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

fn absolute<'de, D: Deserializer<'de>>(value: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(value)?;
    if !path.is_absolute() {
        return Err(de::Error::custom(format!("{:?} is not an absolute path", path.display().to_string())));
    }
    Ok(Some(path))
}

fn attach<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Attach>, D::Error> {
    let text = String::deserialize(value)?;
    let known = [Attach::Sessions, Attach::Root].into_iter().find(|attach| attach.as_str() == text);
    known.map(Some).ok_or_else(|| {
        let remedy = "write \"sessions\" (their sockets) or \"root\" (every socket that a member uses)";
        de::Error::custom(format!("attach cannot be {text:?}: {remedy}"))
    })
}

fn time_to_live<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(value)?;
    duration::parse(&text).map(Some).map_err(|error| de::Error::custom(format!("{text:?} {error}")))
}

fn read_group<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Group>, D::Error> {
    value.deserialize_any(GroupVisitor("groups.read")).map(Some)
}

fn operate_group<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Group>, D::Error> {
    value.deserialize_any(GroupVisitor("groups.operate")).map(Some)
}

struct GroupVisitor(&'static str);

impl Visitor<'_> for GroupVisitor {
    type Value = Group;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a group's name or id")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Group, E> {
        Ok(Group::Named { key: self.0.to_owned(), name: name.to_owned() })
    }

    fn visit_i64<E: de::Error>(self, id: i64) -> Result<Group, E> {
        u32::try_from(id).map(Group::Id).map_err(|_out_of_range| E::custom(format!("{id} is not a group id")))
    }
}
