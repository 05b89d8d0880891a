//! Policies: text → checked [`Policy`] → compiled [`Plan`], and the reference decision.
//!
//! Everything here is a pure function of its arguments: no kernel, no clock, no file is read. Which file a path names
//! is found elsewhere and comes in as [`Resolved`]; what a plan says goes into the kernel's maps elsewhere.
#![forbid(unsafe_code)]

mod compile;
mod decide;
mod net;
mod parse;
mod problem;
mod scope;
mod summary;
#[cfg(test)]
mod tests;
mod types;
mod walk;
mod yaml;

pub use compile::{CompileProblem, NetKey, Note, Plan, Resolved, compile};
pub use decide::{Decision, decide_exec, decide_net};
pub use parse::parse;
pub use problem::Problem;
pub use summary::{RuleSummary, Summary};
pub use types::reason_name;
pub use types::{Effect, ExecRule, ExecTarget, Kind, Mode, NetRule, Policy, PortRange, Protocol};
