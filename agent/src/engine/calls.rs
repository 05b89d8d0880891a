//! Writes down which calls the door refused: it counts them, and its note or the timer says when. Nobody waits for it.

use super::Engine;
use crate::{
    api::{
        door::{Known, Refusal},
        refused::RefusedCall,
        server::Peer,
        wire::ApiError,
    },
    evidence::{Body, CallsRefused, ControlSocket},
    kernel::boot_now,
    session::SessionId,
};

impl Engine {
    /// Says at the door which sessions live, and whose members may ask for one within theirs.
    pub(super) fn tell_door(&self) {
        let known = self.sessions.iter().map(|(id, live)| Known {
            session: *id,
            reference: live.reference,
            nests: live.policy.nested && live.machine.reason().is_none(),
        });
        self.parts.known.set(known.collect());
    }

    /// Counts a member that passed the door and may not ask all the same; the timer sees to the record, after the answer.
    pub(super) fn refuse_member(&self, peer: &Peer, session: Option<SessionId>) -> ApiError {
        let Refusal { session, reason, error } = Refusal::member(session);
        let (socket, message) = (ControlSocket::Operate, error.to_string());
        let call = RefusedCall { session, pid: peer.pid, uid: peer.uid, socket, reason, message };
        let _told = self.parts.refused.add(call, boot_now());
        error
    }

    /// Records what is due.
    pub(super) fn record_refused_calls(&mut self, now_boot_ns: u64) {
        let due = self.parts.refused.take_due(now_boot_ns);
        self.append_refused_calls(due);
    }

    /// Records what is left of a session that ends.
    pub(super) fn record_refused_calls_of(&mut self, id: SessionId) {
        let left = self.parts.refused.take_of(id);
        self.append_refused_calls(left);
    }

    /// Records what is left.
    pub(super) fn record_all_refused_calls(&mut self) {
        let left = self.parts.refused.take_all();
        self.append_refused_calls(left);
    }

    fn append_refused_calls(&mut self, calls: impl IntoIterator<Item = CallsRefused>) {
        calls.into_iter().for_each(|calls| self.append(&Body::CallsRefused(calls)));
    }
}
