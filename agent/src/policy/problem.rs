//! What is wrong with a policy's text, and where. Owns the form in which people see it; decides nothing.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How many problems of one document are reported; the rest is counted.
const REPORTED: usize = 100;
/// Characters of a value that are quoted in a message.
const QUOTED: usize = 60;

/// One fault in a policy's text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Problem {
    /// The name of the text, as the caller gave it.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    /// The key, such as `spec.limits.ttl`; empty where the fault is the document's.
    #[serde(default)]
    pub key: String,
    /// What is wrong, and the remedy.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// A place in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    pub(super) line: u32,
    pub(super) column: u32,
}

impl Mark {
    pub(super) const START: Self = Self { line: 1, column: 1 };
}

/// Collects problems, so that one reading finds them all.
#[derive(Debug)]
pub(super) struct Problems {
    file: String,
    list: Vec<Problem>,
    more: usize,
}

impl Problems {
    pub(super) fn new(file: &str) -> Self {
        Self { file: file.to_owned(), list: Vec::new(), more: 0 }
    }

    pub(super) fn add(&mut self, at: Mark, key: &str, message: impl Into<String>) {
        if self.list.len() == REPORTED {
            self.more += 1;
            return;
        }
        self.list.push(Problem {
            file: self.file.clone(),
            line: at.line,
            column: at.column,
            key: key.to_owned(),
            message: message.into(),
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn count(&self) -> usize {
        self.list.len() + self.more
    }

    /// The problems in the order of the text.
    pub(super) fn into_list(mut self) -> Vec<Problem> {
        self.list.sort_by_key(|problem| (problem.line, problem.column));
        if self.more > 0
            && let Some(last) = self.list.last()
        {
            let message = format!("{} more problems are not listed: mend these first", self.more);
            self.list.push(Problem { key: String::new(), message, ..last.clone() });
        }
        self.list
    }
}

/// A value from the text, quoted, cut, and without characters that would act on a terminal or a log.
pub(super) fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        None => format!("{text:?}"),
        Some((cut, _)) => format!("{:?}…", &text[..cut]),
    }
}
