//! Tipstaff's agent: loads the kernel programs, tracks sessions, ends them, keeps the evidence.
//!
//! Data flows one way: kernel → ring → engine → effects; commands → compiled plan → maps.

pub mod kernel;
pub mod enforce;
pub mod policy;
pub mod evidence;
mod hex;
pub mod session;
pub mod api;
pub mod cli;
pub mod config;
pub mod duration;
pub mod inherited;
