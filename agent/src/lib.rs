//! Tipstaff's agent: loads the kernel programs, tracks sessions, ends them, keeps the evidence.
//!
//! Data flows one way: kernel → ring → engine → effects; commands → compiled plan → maps.

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod duration;
pub mod enforce;
pub mod engine;
pub mod evidence;
mod gate;
mod given;
mod ground;
mod hex;
mod host_events;
pub mod inherited;
pub mod kernel;
mod made;
mod pace;
pub mod policy;
mod readable;
pub mod session;
mod shed;
pub mod store;
mod users;
