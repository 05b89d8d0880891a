//! `spec.attach`: what becomes of what a workload holds that is attached while it runs. Owns that key.

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

/// Reads `spec.attach`.
pub(super) fn read(spec: &Fields<'_>, problems: &mut Problems) -> Inherited {
    let attach = spec.get("attach").and_then(|attach| fields(attach.at(), ATTACH, problems));
    let sockets = attach.and_then(|attach| word(attach.get("sockets")?.at(), &SOCKETS, problems));
    sockets.unwrap_or_default()
}
