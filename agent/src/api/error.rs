//! What a call can fail with, by error name on the wire.
//!
//! Messages are finished sentences for people: lower case, without a full stop, naming value and remedy.

use serde::{Deserialize, Serialize};

pub use crate::policy::Problem;

/// An error reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "error", content = "parameters")]
pub enum ApiError {
    /// No such session, or more than one by that prefix.
    #[error("{message}")]
    #[serde(rename = "dev.tipstaff.NotFound")]
    NotFound {
        /// Names the id.
        message: String,
    },
    /// The call cannot be understood or its parameters make no sense.
    #[error("{message}")]
    #[serde(rename = "dev.tipstaff.BadRequest")]
    BadRequest {
        /// Names method, parameter and value.
        message: String,
    },
    /// The policy has faults; all of them.
    #[error("{}", list(.problems))]
    #[serde(rename = "dev.tipstaff.BadPolicy")]
    BadPolicy {
        /// At least one.
        problems: Vec<Problem>,
    },
    /// A policy or a limit of the host refuses it.
    #[error("{message}{}; {remedy}", named(.rule.as_deref()))]
    #[serde(rename = "dev.tipstaff.Refused")]
    Refused {
        /// What was refused.
        message: String,
        /// The rule's id, where a rule decided.
        #[serde(default)]
        rule: Option<String>,
        /// What would make it work.
        remedy: String,
    },
    /// A control that is asked for is not there on this host.
    #[error("control {control}: {message}")]
    #[serde(rename = "dev.tipstaff.Unavailable")]
    Unavailable {
        /// The control.
        control: String,
        /// Why, and the remedy.
        message: String,
    },
    /// The caller is itself a member of a session.
    #[error("a member of a session cannot speak to the agent")]
    #[serde(rename = "dev.tipstaff.Member")]
    Member {},
    /// This caller may not, or not on this socket.
    #[error("{message}")]
    #[serde(rename = "dev.tipstaff.Denied")]
    Denied {
        /// What and why.
        message: String,
    },
    /// The agent has no room for this call now.
    #[error("{message}")]
    #[serde(rename = "dev.tipstaff.Busy")]
    Busy {
        /// What is full.
        message: String,
    },
    /// It was tried and did not work.
    #[error("{message}")]
    #[serde(rename = "dev.tipstaff.Failed")]
    Failed {
        /// What failed.
        message: String,
    },
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

fn named(rule: Option<&str>) -> String {
    rule.map_or_else(String::new, |rule| format!(" (rule {rule})"))
}
