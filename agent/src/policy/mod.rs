//! Policies: text → checked [`Policy`] → compiled [`Plan`], and the reference decision.
//!
//! Everything here is a pure function of its arguments: no kernel, no clock, no file is read. Which file a path names
//! is found elsewhere and comes in as [`Resolved`]; what a plan says goes into the kernel's maps elsewhere.
#![forbid(unsafe_code)]

mod attach;
mod budgets;
mod compile;
mod decide;
pub mod delegates;
mod exec;
mod limits;
pub mod metadata;
mod narrow;
mod net;
mod note;
mod parse;
mod phases;
mod problem;
mod programs;
mod resolved;
mod resolver;
mod scope;
mod shed;
mod summary;
mod table;
#[cfg(test)]
mod tests;
mod traffic;
mod types;
mod violations;
mod walk;
mod window;
mod yaml;

pub use attach::{Descriptors, Inherited};
pub use compile::{Plan, compile, compile_less};
pub use decide::{Decision, UnixSocket, decide_exec, decide_inbound, decide_listen, decide_net, decide_unix};
pub use limits::{Activity, IdleLimit, Limits};
pub use narrow::{Candidate, Wider, unbound, wider, wider_later};
pub use note::Note;
pub use parse::parse;
pub use phases::Phases;
pub use problem::Problem;
pub use programs::{FileDigest, Program, ProgramClass};
pub use resolved::{Hashed, Resolved, UnixFound};
pub use resolver::resolvers;
pub use scope::{Classes, Privileges, privilege_name};
pub use shed::{SYS_ADMIN, Shed, capability_names, privilege_names};
pub use summary::{RuleSummary, Summary};
pub use table::{CompileProblem, NetKey, NetTable};
pub use traffic::{Access, Addresses, Budgets, NetRule, PortRange, Protocol, UnixRule, UnixTarget};
pub use types::{AgentLoss, Effect, ExecRule, ExecTarget, Kind, Mode, Policy, reason_name};
pub use window::{Window, next_opening, open_until};
