//! Effects on the host: sessions' cgroups, killing what is labelled, and the canary that proves the controls.
//!
//! Decides nothing: what is to end was decided by the session, and which task is a member is the kernel's word.

mod canary;
mod cgroup;
mod sweep;

pub use canary::{Song, VERB, child, prove};
pub use cgroup::{SessionCgroup, cgroup_of};
pub use sweep::{Killed, Sweep};
