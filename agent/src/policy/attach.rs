//! `spec.attach` and `spec.run`: what becomes of what a workload holds that is attached while it runs, and of what a command
//! inherits. Owns these keys.

use super::{
    problem::Problems,
    walk::{Fields, Keys, fields, word},
};

const ATTACH: Keys = Keys { known: &["sockets"], later: &[] };
const SOCKETS: [(&str, Inherited); 4] = [
    ("judge", Inherited::Judge),
    ("keep", Inherited::Keep),
    ("destroy", Inherited::Destroy),
    ("refuse", Inherited::Refuse),
];

/// What becomes of the internet sockets that an attached workload holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inherited {
    /// Those that the scope does not allow are destroyed.
    #[default]
    Judge,
    /// All are kept.
    Keep,
    /// All are destroyed.
    Destroy,
    /// Who holds one is not attached.
    Refuse,
}

impl Inherited {
    /// As policies spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        SOCKETS.iter().find(|(_, value)| *value == self).map_or("judge", |(name, _)| name)
    }
}

const RUN: Keys = Keys { known: &["sockets"], later: &[] };
const DESCRIPTORS: [(&str, Descriptors); 4] = [
    ("judge", Descriptors::Judge),
    ("keep", Descriptors::Keep),
    ("close", Descriptors::Close),
    ("refuse", Descriptors::Refuse),
];

/// What becomes of the sockets that a command inherits as its descriptors 0 to 2, but for unix sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Descriptors {
    /// Those that are not connected to whom a rule lets a member go or let come in are closed.
    #[default]
    Judge,
    /// All are kept.
    Keep,
    /// All are closed.
    Close,
    /// A command that inherits one is not started.
    Refuse,
}

/// Reads `spec.run`.
pub(super) fn read_run(spec: &Fields<'_>, problems: &mut Problems) -> Descriptors {
    let run = spec.get("run").and_then(|run| fields(run.at(), RUN, problems));
    let sockets = run.and_then(|run| word(run.get("sockets")?.at(), &DESCRIPTORS, problems));
    sockets.unwrap_or_default()
}

/// Reads `spec.attach`.
pub(super) fn read(spec: &Fields<'_>, problems: &mut Problems) -> Inherited {
    let attach = spec.get("attach").and_then(|attach| fields(attach.at(), ATTACH, problems));
    let sockets = attach.and_then(|attach| word(attach.get("sockets")?.at(), &SOCKETS, problems));
    sockets.unwrap_or_default()
}
