//! The append-only, hash-chained log of what sessions did and what was done to them.
//!
//! Owns the records' types, the chain, the log file with its head file, recovery after a crash, and verification
//! (`docs/evidence.md` describes the format). It reads no clock and decides nothing: what happened, and when, is the
//! caller's. A record that could not be written is counted, and the next one that can be is preceded by a gap record.
#![forbid(unsafe_code)]

mod chain;
mod error;
mod head;
mod log;
mod read;
mod record;
mod recover;
mod report;
mod text;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

pub use chain::{Hash, Head, LINE_MAX};
pub use error::Error;
pub use head::HeadFile;
pub use log::{Log, Recovery, log_file};
pub use read::{Records, read};
pub use record::{
    Act, AgentStart, AgentStop, Attached, Attachment, Body, CallRefusal, CallsRefused, Command, Connect, Context,
    Control, ControlSocket, ControlState, CredentialReuse, CutCause, CutOutcome, Disarm, Exec, Exit, FileRef, FlowsCut,
    Fork, Gap, GapCause, InheritedDescriptor, InheritedSocket, InheritedUnix, Lift, Mark, Moment, Move, PolicyRef,
    Principal, PrincipalGone, Privilege, RECEIPTS_MAX, Receipt, Receipts, Record, Refused, Revoke, SessionEnd,
    SessionNarrowed, SessionStart, Socket, SocketReceipt, StartLimits, StayRef, Stuck, StuckTask, Taken, Terminate,
    Tier, Transition, Unix, User, Verdict, Via, Warning,
};
pub use report::{Damage, NotedGap, Report, Soundness};
pub use text::Text;
pub use verify::{check, verify};
pub use writer::Written;
