//! Effects on the host: sessions' cgroups, killing what is labelled, destroying sockets, and the canary that proves the controls.
//!
//! Decides nothing: what is to end was decided by the session, and which task is a member is the kernel's word.

mod canary;
mod cgroup;
mod freezer;
mod sockets;
mod sweep;
mod tree;
mod trust;
mod watch;

pub use canary::{CALL, PRIVILEGES, Song, VERB, child, prove};
pub use cgroup::{SessionCgroup, cgroup_of, processes_below, remember_home, step_out};
pub use sockets::{
    Cut, Failure, Flows, Found, Held, HeldUnix, Inheritance, Look, Registry, Which, Whose, explain, inheritance,
    protocol_name, prove_destroy, socket_of, sockets_of,
};
pub use sweep::{End, Killed, Left, Sweep, has_ended, round, signal_members};
pub use tree::{Host, Refusal, Target, cgroup_named, outside, whom};
pub use trust::{only_root_can_place, only_root_can_replace};
pub use watch::{FileWatch, directories_of, walk};
