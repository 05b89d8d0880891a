//! The agent's local sockets: `read.sock` for what only looks, `operate.sock` for what changes something.
//!
//! Owns the wire types, the framing, the client and the listeners. Of sessions it knows ids and labels, as the engine says
//! them: calls are handed to the engine with who sent them, and whether the sender is itself governed is asked of a gate.
#![forbid(unsafe_code)]

pub mod answer;
pub mod client;
pub mod door;
pub mod error;
pub mod frame;
mod places;
pub mod refused;
mod reply;
pub mod server;
mod shown;
mod socket;
pub mod wire;

use std::path::{Path, PathBuf};

/// The socket that only answers questions.
#[must_use]
pub fn read_socket(runtime: &Path) -> PathBuf {
    runtime.join("read.sock")
}

/// The socket that also takes `Run`, `End` and `Disarm`.
#[must_use]
pub fn operate_socket(runtime: &Path) -> PathBuf {
    runtime.join("operate.sock")
}
