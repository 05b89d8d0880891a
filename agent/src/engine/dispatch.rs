//! Takes calls: each goes to what carries it out, and its answer back to who asked.

use super::{Disarming, Engine, start};
use crate::{
    api::{
        answer::Answer,
        server::{Incoming, Peer},
        wire::{ApiError, Reply, Request},
    },
    kernel::boot_now,
    session::{EndReason, Input, SessionId},
};

impl Engine {
    /// Carries out one call.
    pub fn call(&mut self, incoming: Incoming) {
        let Incoming { request, peer, reply, came } = incoming;
        let waited = u64::try_from(came.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.asked = Some(boot_now().saturating_sub(waited));
        self.carry_out_call(request, &peer, reply);
        self.asked = None;
    }

    fn carry_out_call(&mut self, request: Request, peer: &Peer, reply: Answer) {
        match request {
            Request::Ps {} => reply.finish(self.ps()),
            Request::Inspect(id) => reply.finish(self.find(&id.id).and_then(|id| self.inspect(id))),
            Request::Status {} => reply.finish(Ok(self.status())),
            Request::Probe {} => reply.finish(Ok(self.probe())),
            Request::Events(follow) => self.send_records(reply, 0, follow.follow),
            Request::Run(run) => {
                let result = self.start(&run, peer);
                let result = self.without_leases(result);
                reply.finish(result.map(Reply::Started));
            }
            Request::Attach(attach) => {
                let result = self.attach(&attach, peer);
                reply.finish(self.without_leases(result));
            }
            Request::End(end) => self.end(&end, peer, reply),
            Request::Renew(renew) => reply.finish(self.renew_for(&renew, peer)),
            Request::Freeze(id) => reply.finish(self.freeze(&id.id, peer)),
            Request::Thaw(id) => reply.finish(self.thaw(&id.id, peer)),
            Request::Revoke(revoke) => self.revoke(&revoke, peer, reply),
            Request::Stays {} => reply.finish(Ok(Reply::Stays(self.list_stays()))),
            Request::Lift(lift) => reply.finish(self.lift(&lift, peer).map(Reply::Stays)),
            Request::Narrow(narrow) => {
                let result = self.narrow(&narrow, peer);
                reply.finish(self.without_leases(result));
            }
            Request::Disarm {} => self.disarm(peer, reply),
        }
    }

    /// What was refused keeps no lease on files that its policy asks digests of.
    fn without_leases<T>(&mut self, result: Result<T, ApiError>) -> Result<T, ApiError> {
        if result.is_err() {
            self.let_leases_go();
        }
        result
    }

    fn disarm(&mut self, peer: &Peer, reply: Answer) {
        if self.disarming.is_some() {
            return reply.finish(Err(ApiError::Busy { message: "a disarm is under way".into() }));
        }
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        let principal = start::principal(peer);
        self.disarming = Some(Disarming { reply, sessions: sessions.clone(), principal });
        self.feed_all(sessions.into_iter().map(|id| (id, Input::End { reason: EndReason::Operator })));
        self.finish_disarm();
    }
}
