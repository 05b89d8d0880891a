//! The record of a session that got a stricter scope.

use serde::{Deserialize, Serialize};

use super::{PolicyRef, Principal};
use crate::session::SessionId;

/// A live session got a stricter scope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionNarrowed {
    /// The session.
    pub session: SessionId,
    /// Who asked.
    pub principal: Principal,
    /// The policy that held before.
    pub from: PolicyRef,
    /// The policy that holds now.
    pub to: PolicyRef,
    /// The rules that were removed, where that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
    /// The phase of the policy that it is in now. A narrowing to a phase lists no rules: the policy's text does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// How many scopes the session has had, this one included.
    pub revision: u32,
}
