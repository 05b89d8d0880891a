//! The credentials that sessions act with, known by their fingerprints alone: what a caller may say of one, and two
//! sessions that live with the same.

use std::collections::BTreeSet;

use super::{Engine, Live};
use crate::{
    api::wire::ApiError,
    evidence::{Body, CredentialReuse},
    hex,
    session::SessionId,
};

/// A fingerprint in its one spelling.
pub(super) fn check(fingerprint: Option<&str>) -> Result<(), ApiError> {
    match fingerprint {
        Some(text) if hex::decode::<32>(text).is_none() => {
            let message =
                format!("{text:?} is no fingerprint of a credential: 64 lower-case hexadecimal digits of a SHA-256");
            Err(ApiError::BadRequest { message })
        }
        _ => Ok(()),
    }
}

/// Those of `others` that live with the credential of a session, and of which `told` does not say so yet.
fn untold<'a>(
    (id, credential): (SessionId, &str),
    others: impl Iterator<Item = (SessionId, &'a str)>,
    told: &BTreeSet<SessionId>,
) -> Vec<SessionId> {
    others.filter(|(other, own)| *other != id && *own == credential && !told.contains(other)).map(|o| o.0).collect()
}

impl Engine {
    /// Records that a session lives beside others with its credential. `told` are those that the evidence names already.
    pub(super) fn record_reuse(&mut self, id: SessionId, told: &BTreeSet<SessionId>) {
        let Some((live, credential)) = self.sessions.get(&id).and_then(acting) else { return };
        let (credential, policy) = (credential.to_owned(), live.policy.name.clone());
        let others = self.sessions.iter().filter_map(|(other, live)| Some((*other, acting(live)?.1)));
        let others = untold((id, &credential), others, told);
        if !others.is_empty() {
            self.append_durable(&Body::CredentialReuse(CredentialReuse { session: id, policy, credential, others }));
        }
    }

    /// The same for sessions that an earlier agent began, in the order in which they did: it may have died between a start
    /// and the record. `told` has the pairs that the evidence names.
    pub(super) fn record_reuses(&mut self, told: &BTreeSet<(SessionId, SessionId)>) {
        let mut begun: Vec<(u64, SessionId)> = self.sessions.iter().map(|(id, live)| (live.started, *id)).collect();
        begun.sort_unstable();
        let mut later: BTreeSet<SessionId> = begun.iter().map(|(_, id)| *id).collect();
        for (_, id) in begun {
            // a session names those that were there before it
            let named = told.iter().filter_map(|(a, b)| (*a == id).then_some(*b).or_else(|| (*b == id).then_some(*a)));
            let known: BTreeSet<SessionId> = named.chain(later.iter().copied()).collect();
            self.record_reuse(id, &known);
            later.remove(&id);
        }
    }
}

/// A session whose members may still do something, with its credential.
fn acting(live: &Live) -> Option<(&Live, &str)> {
    let over = live.machine.reason().is_some() && live.machine.wakes_at().is_none();
    Some((live, live.start.credential.as_deref().filter(|_| !over)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_sixty_four_small_digits() {
        assert!(check(None).is_ok() && check(Some(&"0a".repeat(32))).is_ok());
        for text in ["", "0a", &"0A".repeat(32), &"0g".repeat(32)] {
            assert!(check(Some(text)).is_err_and(|error| error.to_string().contains("is no fingerprint")), "{text}");
        }
    }

    #[test]
    fn the_same_credential_is_told_once() {
        let [a, b, c] = [1, 2, 3].map(|n| SessionId::from_random([n; 16]));
        let all = [(a, "x"), (b, "x"), (c, "y")];
        let of = |id: SessionId, credential: &str, told: &[SessionId]| {
            untold((id, credential), all.into_iter(), &told.iter().copied().collect())
        };
        assert_eq!(of(b, "x", &[]), [a]);
        assert_eq!(of(b, "x", &[a]), []);
        assert_eq!(of(c, "y", &[]), [], "a session is not beside itself");
        assert_eq!(of(c, "x", &[a]), [b]);
    }
}
