//! Sessions in their slots: what the programs are told of each, and what they counted. The order of writes is what
//! makes a change visible in one step; each function says what that step is.

use std::{collections::HashSet, mem::offset_of, os::fd::AsFd as _};

use aya::maps::IterableMap as _;
use tipstaff_common::{
    label::{Mirrored, SessionRef},
    session::{
        Budgets, MODE_ENFORCE, MODE_OBSERVE, STATE_ACTIVE, STATE_ENDED, STATE_FREE, STATE_UNDONE, SessionConfig,
        SessionCounters, state_word,
    },
    socket::Destination,
};

use super::{
    Kernel, KernelError,
    maps::{entry, failed, removed},
    sys::MappedArray,
};

impl Kernel {
    /// Makes a free slot a live session: the counters are cleared and the configuration written before one write of the
    /// state makes labels of `generation` count.
    pub fn begin(&mut self, session: SessionRef, config: SessionConfig, cgroup: u64) -> Result<(), KernelError> {
        let SessionRef { slot, generation } = session;
        self.maps.counters.set(slot, SessionCounters::default(), 0).map_err(failed("write", "SESSION_COUNTERS"))?;
        self.maps.configs.set(slot, config, 0).map_err(failed("write", "SESSION_CONFIG"))?;
        self.set_state(session, STATE_ACTIVE)?;
        self.maps.cgroups.insert(cgroup, SessionRef { slot, generation }, 0).map_err(failed("write", "CGROUP_SESSIONS"))
    }

    /// Moves the moment after which the session starts and sends nothing: one aligned 64-bit word; mode and policy are
    /// written as they are.
    pub fn set_deadline(&mut self, session: SessionRef, deadline: u64) -> Result<(), KernelError> {
        let config = entry(&self.maps.configs, session.slot, "SESSION_CONFIG")?;
        let config = SessionConfig { deadline, ..config };
        self.maps.configs.set(session.slot, config, 0).map_err(failed("write", "SESSION_CONFIG"))
    }

    /// Moves the ctime from which on a file may be a member's work: one aligned 64-bit word; the others are written as they are.
    pub fn set_written_since(&mut self, session: SessionRef, written_since: u64) -> Result<(), KernelError> {
        let config = entry(&self.maps.configs, session.slot, "SESSION_CONFIG")?;
        let config = SessionConfig { written_since, ..config };
        self.maps.configs.set(session.slot, config, 0).map_err(failed("write", "SESSION_CONFIG"))
    }

    /// Holds a session to another policy: one word, which every decision reads once.
    pub fn set_policy(&mut self, session: SessionRef, policy: u32) -> Result<(), KernelError> {
        self.set_word(session, offset_of!(SessionConfig, policy), policy)
    }

    /// Says how many scopes a session has had: one word.
    pub fn set_scopes(&mut self, session: SessionRef, scopes: u32) -> Result<(), KernelError> {
        self.set_word(session, offset_of!(SessionConfig, scopes), scopes)
    }

    /// Makes a session that was begun in `MODE_OBSERVE` refuse: one word.
    pub fn set_enforcing(&mut self, session: SessionRef) -> Result<(), KernelError> {
        self.set_word(session, offset_of!(SessionConfig, mode), MODE_ENFORCE)
    }

    fn set_word(&mut self, session: SessionRef, offset: usize, word: u32) -> Result<(), KernelError> {
        let configs = self.maps.configs.map().fd().as_fd();
        let entries = tipstaff_common::limits::SESSIONS as usize;
        let mapped = MappedArray::new(configs, size_of::<SessionConfig>(), entries);
        let mapped = mapped.map_err(failed("map", "SESSION_CONFIG"))?;
        if mapped.store(session.slot as usize, offset, word) {
            return Ok(());
        }
        Err(failed("write", "SESSION_CONFIG")(format!("there is no slot {}", session.slot)))
    }

    /// Holds a session to other budgets. Each is a word of its own.
    pub fn set_budgets(&mut self, session: SessionRef, budgets: Budgets) -> Result<(), KernelError> {
        let config = SessionConfig { budgets, ..entry(&self.maps.configs, session.slot, "SESSION_CONFIG")? };
        self.maps.configs.set(session.slot, config, 0).map_err(failed("write", "SESSION_CONFIG"))
    }

    /// Ends the session in the kernel: from this write on every hook denies.
    pub fn mark_ended(&mut self, session: SessionRef) -> Result<(), KernelError> {
        self.set_state(session, STATE_ENDED)
    }

    /// Makes a session that never came to be one whose labels [`Kernel::label_heirs`] takes off again; nothing is refused
    /// to who still carries one.
    pub fn mark_undone(&mut self, session: SessionRef) -> Result<(), KernelError> {
        let config = entry(&self.maps.configs, session.slot, "SESSION_CONFIG")?;
        let config = SessionConfig { mode: MODE_OBSERVE, deadline: u64::MAX, ..config };
        self.maps.configs.set(session.slot, config, 0).map_err(failed("write", "SESSION_CONFIG"))?;
        self.set_state(session, STATE_UNDONE)
    }

    /// Frees the slots of ended sessions that have no members, each with the id of its cgroup, and forgets that and what the
    /// mirror still holds. One that cannot be freed does not keep the others.
    ///
    /// # Errors
    /// The last that was refused.
    pub fn release(&mut self, over: &[(SessionRef, u64)]) -> Result<(), KernelError> {
        let all: HashSet<(u32, u32)> = over.iter().map(|(session, _)| (session.slot, session.generation)).collect();
        // the map is as large as the host has members: one pass serves all of them
        let own = |m: &Mirrored| all.contains(&(m.slot, m.generation));
        let stale = self.maps.mirror.iter().filter_map(Result::ok).filter(|(_, m)| own(m)).map(|(task, _)| task);
        for task in stale.collect::<Vec<u64>>() {
            // gone in the meantime is as good as removed
            let _ = self.maps.mirror.remove(&task);
        }
        let has = |(session, _): &(SessionRef, u64)| self.counters(session.slot).is_ok_and(|c| c.destinations > 0);
        if over.iter().any(has) {
            self.forget_destinations(&all);
        }
        let mut done = Ok(());
        for (session, cgroup) in over {
            let freed = removed("CGROUP_SESSIONS", self.maps.cgroups.remove(cgroup));
            let freed = freed.and_then(|()| self.set_state(*session, STATE_FREE));
            done = freed.and(done);
        }
        done
    }

    fn forget_destinations(&mut self, over: &HashSet<(u32, u32)>) {
        let own = |d: &Destination| over.contains(&(d.slot, d.generation));
        let gone: Vec<Destination> = self.maps.destinations.keys().filter_map(Result::ok).filter(own).collect();
        for destination in gone {
            // as above
            let _ = self.maps.destinations.remove(&destination);
        }
    }

    fn set_state(&mut self, session: SessionRef, state: u32) -> Result<(), KernelError> {
        let word = state_word(session.generation, state);
        self.maps.states.set(session.slot, word, 0).map_err(failed("write", "SESSION_STATE"))
    }

    /// Generation and state of a slot, as the programs have it: `STATE_*` in the second.
    pub fn state(&self, slot: u32) -> Result<(u32, u32), KernelError> {
        let word = entry(&self.maps.states, slot, "SESSION_STATE")?;
        let low = u32::try_from(word & 0xffff_ffff).unwrap_or(0);
        Ok((u32::try_from(word >> 32).unwrap_or(0), low))
    }

    /// What the session in a slot is held to, as the programs have it.
    pub fn config(&self, slot: u32) -> Result<SessionConfig, KernelError> {
        entry(&self.maps.configs, slot, "SESSION_CONFIG")
    }

    /// The cgroups that have sessions, by id.
    #[must_use]
    pub fn session_cgroups(&self) -> Vec<(u64, SessionRef)> {
        self.maps.cgroups.iter().filter_map(Result::ok).collect()
    }

    /// What a session did so far.
    pub fn counters(&self, slot: u32) -> Result<SessionCounters, KernelError> {
        entry(&self.maps.counters, slot, "SESSION_COUNTERS")
    }
}
