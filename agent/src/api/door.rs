//! Who may speak at the sockets at all: what the server asks for each call, what the engine says of its sessions for that, and
//! what becomes of a call that is refused.

use std::{
    os::fd::BorrowedFd,
    sync::{Arc, PoisonError, RwLock},
};

use tipstaff_common::label::SessionRef;

use super::{refused::RefusedCall, server::Peer, wire::ApiError};
use crate::{evidence::CallRefusal, session::SessionId};

/// Decides whether a peer may speak at all. Called before every call, on the connection's task: it must not block.
pub type Ask = Arc<dyn Fn(&Peer, BorrowedFd<'_>) -> Result<Standing, Refusal> + Send + Sync>;
/// Is told of each call that was refused so. It must not block either.
pub type Count = Arc<dyn Fn(RefusedCall) + Send + Sync>;

/// The gate, and who is told whom it refused.
#[derive(Clone)]
pub struct Gate {
    /// Asked before every call.
    pub ask: Ask,
    /// Told of every refusal.
    pub count: Count,
}

/// What a peer may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Whatever its socket takes.
    Free,
    /// It is a member of this session: to start another within it, and nothing else.
    Nesting(SessionId),
}

/// A peer that may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its session; none where that is not known, or none lives.
    pub session: Option<SessionId>,
    /// Why.
    pub reason: CallRefusal,
    /// What it is told.
    pub error: ApiError,
}

impl Refusal {
    /// It is a member.
    #[must_use]
    pub const fn member(session: Option<SessionId>) -> Self {
        Self { session, reason: CallRefusal::Member, error: ApiError::Member {} }
    }

    /// It could not be told what it is.
    #[must_use]
    pub const fn unknown(error: ApiError) -> Self {
        Self { session: None, reason: CallRefusal::Unknown, error }
    }
}

/// A session that lives, as the door knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its id.
    pub session: SessionId,
    /// Its label.
    pub reference: SessionRef,
    /// Its members may ask for a session within it.
    pub nests: bool,
}

/// The sessions that live. The engine says them, the door asks.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<RwLock<Vec<Known>>>);

impl Sessions {
    /// Replaces them.
    pub fn set(&self, sessions: Vec<Known>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = sessions;
    }

    /// The one with this label.
    #[must_use]
    pub fn labelled(&self, reference: SessionRef) -> Option<Known> {
        self.find(|known| known.reference == reference)
    }

    /// The one with this id.
    #[must_use]
    pub fn named(&self, session: SessionId) -> Option<Known> {
        self.find(|known| known.session == session)
    }

    fn find(&self, wanted: impl Fn(&Known) -> bool) -> Option<Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).iter().copied().find(wanted)
    }
}
