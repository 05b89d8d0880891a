//! The only place that knows aya and bpf(2): finds out what this kernel can do, loads and attaches the programs, pins
//! them, reads and writes their maps, decodes their records.
//!
//! No policy is decided here and no process is killed from here.

mod adopt;
mod attach;
mod btf;
mod by_hand;
mod cgroup;
mod clock;
mod error;
mod identity;
mod lease;
mod leftover;
mod load;
mod maps;
mod members;
mod offsets;
mod pins;
mod port_lists;
mod process;
mod programs;
mod reader;
pub mod ring;
mod sessions;
mod sockets;
mod sys;
mod tables;
mod verity;

pub use cgroup::CgroupRoot;
pub use error::KernelError;
pub use identity::{Seen, open_path};
pub use lease::{has_lease, take_lease};
pub use leftover::Leftover;
pub use load::{Kernel, Options, Tier};
pub use maps::Rings;
pub use members::{Member, Walk};
pub use pins::{Pins, lock_soon};
pub use process::{
    Urgent, boot_now, descriptor_of, kill_pidfd, namespace_of, open_pidfd, protocol_of, signal_pidfd, trim_heap,
};
pub use reader::LabelReader;
pub use sockets::Socket;
pub use sys::wait_for_programs;
pub use tables::{AddressRules, Revision};
pub use verity::measure_verity;

/// Version of the running kernel, as uname(2) has it.
#[must_use]
pub fn release() -> String {
    nix::sys::utsname::uname().map_or_else(|_| "unknown".into(), |u| u.release().to_string_lossy().into_owned())
}
