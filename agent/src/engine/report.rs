//! What people ask: ps, inspect, status, probe.

use std::collections::BTreeMap;

use super::{Engine, Live, complain, controls, finish::named, look};
use crate::{
    api::wire::{self, ApiError, Reply},
    evidence::{Control, ControlState, Text},
    kernel::{self, Member, boot_now, ring},
    policy::{Mode, Policy},
    session::{Ends, SPREAD_MS, SessionId, Spread, Took, Verdict},
};

/// Bytes of a command that are kept for display and evidence.
pub(super) const COMMAND: usize = 4096;
/// Members that `inspect` lists; it counts them all.
const MEMBERS: usize = 4096;

impl Engine {
    pub(super) fn ps(&mut self) -> Result<Reply, ApiError> {
        self.see_activity(boot_now());
        let members = self.parts.kernel.members().map_err(|e| ApiError::Failed { message: e.to_string() })?;
        let mut rows: Vec<(u64, wire::SessionRow)> =
            self.sessions.iter().map(|(id, live)| (live.started, self.row(*id, live, &members))).collect();
        rows.sort_by_key(|(started, _)| *started);
        Ok(Reply::Ps(wire::Ps { sessions: rows.into_iter().map(|(_, row)| row).collect() }))
    }

    fn row(&self, id: SessionId, live: &Live, members: &[Member]) -> wire::SessionRow {
        let now = boot_now();
        let context = &live.start.context;
        let verdict = self.verdict(live, now);
        let lost = self.parts.kernel.counters(live.reference.slot).map_or(0, |c| c.lost.iter().sum());
        wire::SessionRow {
            id: id.to_string(),
            name: live.policy.name.clone(),
            kind: live.policy.kind.to_string(),
            mode: if live.policy.mode == Mode::Enforce { "enforce" } else { "observe" }.into(),
            state: live.machine.state().to_string(),
            verdict: verdict.to_string(),
            why: verdict.why().into(),
            uid: live.start.principal.uid,
            pid: context.pid,
            command: context.command.iter().map(Text::to_string).collect(),
            members: of(live, members).count() as u64,
            age_ms: now.saturating_sub(live.started) / 1_000_000,
            left_ms: live.left_ms(),
            denied: live.denied,
            lost,
            idle_ms: live.idle_ms(now),
            stale: live.stale(),
        }
    }

    pub(super) fn inspect(&mut self, id: SessionId) -> Result<Reply, ApiError> {
        self.see_activity(boot_now());
        let members = self.parts.kernel.members().map_err(|e| ApiError::Failed { message: e.to_string() })?;
        let Some(live) = self.sessions.get(&id) else {
            return Err(ApiError::NotFound { message: format!("session {id} is over") });
        };
        let counters = complain("reading counters", self.parts.kernel.counters(live.reference.slot));
        let counters = counters.unwrap_or_default();
        let (produced, lost) = (named(counters.produced), named(counters.lost));
        let (start, principal) = (&live.start, &live.start.principal);
        Ok(Reply::Inspect(Box::new(wire::Inspect {
            session: self.row(id, live, &members),
            policy: wire::PolicyInfo {
                name: live.policy.name.clone(),
                digest: live.policy.digest.clone(),
                source: live.source.clone(),
                revision: live.revision,
                phase: live.phase.clone(),
                phases: live.policy.phases.keys().cloned().collect(),
                summary: summary(&live.policy),
            },
            limits: live.limits_info(),
            principal: wire::Principal { uid: principal.uid, gid: principal.gid, login_uid: principal.login_uid },
            context: wire::Context {
                pid: start.context.pid,
                command: start.context.command.iter().map(Text::to_string).collect(),
                cwd: start.context.cwd.to_string(),
                tty: start.context.tty.as_ref().map(Text::to_string),
                labels: start.labels.clone(),
                credential: start.credential.clone(),
                cgroup: start.context.cgroup.to_string(),
                namespaces: start.context.namespaces.clone(),
                attached: start.attached.as_ref().map(|how| match &how.cgroup {
                    Some(cgroup) => format!("cgroup {cgroup}"),
                    None => format!("process {}", start.context.pid),
                }),
            },
            counters: wire::Counters { produced, lost, packets_dropped: counters.packets_dropped },
            ending: live.ending.map(|ending| wire::EndingInfo {
                since_ms: boot_now().saturating_sub(ending.due_boot_ns) / 1_000_000,
                mark_ms: ending.took(None, None).mark_ms,
            }),
            attach: self.parts.config.attach.as_str().into(),
            controls: self.asked(live).iter().map(wire_control).collect(),
            members: of(live, &members).take(MEMBERS).map(|m| wire::Member { pid: m.tgid, tid: m.tid }).collect(),
            verdicts: live.verdicts.iter().cloned().collect(),
        })))
    }

    pub(super) fn probe(&self) -> Reply {
        Reply::Probe(wire::Probe {
            kernel: kernel::release(),
            tier: self.parts.kernel.tier().as_str().into(),
            attach: self.parts.config.attach.as_str().into(),
            controls: self.parts.controls.iter().map(wire_control).collect(),
        })
    }

    pub(super) fn status(&self) -> Reply {
        let why = self.degraded();
        let lost = self.lost();
        let skipped = complain("counting skipped runs", self.parts.kernel.skipped()).unwrap_or_default();
        Reply::Status(Box::new(wire::Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            kernel: kernel::release(),
            tier: self.parts.kernel.tier().as_str().into(),
            attach: self.parts.config.attach.as_str().into(),
            uptime_ms: u64::try_from(self.ready.elapsed().as_millis()).unwrap_or(u64::MAX),
            sessions: self.sessions.len() as u64,
            verdicts: self.verdicts(),
            controls: self.parts.controls.iter().map(wire_control).collect(),
            lost,
            skipped: skipped.into_iter().map(|(name, runs)| (name.to_owned(), runs)).collect(),
            foreign: complain("counting foreign tasks", self.parts.kernel.foreign()).unwrap_or(0),
            ends: wire_ends(&self.ends),
            walks: self.parts.kernel.walks(),
            hashed: self.digests.taken(),
            evidence: wire::EvidenceInfo {
                path: self.parts.log.path().display().to_string(),
                n: self.parts.log.last(),
                unwritten: self.parts.log.missed(),
            },
            store: wire::StoreInfo {
                path: self.parts.store.path().display().to_string(),
                refused: self.parts.store.refused(),
            },
            degraded: !why.is_empty(),
            why,
        }))
    }

    /// How many sessions each verdict is on; a verdict that is on none is there too, with 0.
    fn verdicts(&self) -> BTreeMap<String, u64> {
        let mut counts: BTreeMap<String, u64> = Verdict::NAMES.iter().map(|name| ((*name).to_owned(), 0)).collect();
        let now = boot_now();
        for live in self.sessions.values() {
            *counts.entry(self.verdict(live, now).as_str().to_owned()).or_default() += 1;
        }
        counts
    }

    /// Records that found no room since the start, by kind, and those that could not be decoded.
    fn lost(&self) -> BTreeMap<String, u64> {
        let counted = complain("counting losses", self.parts.kernel.lost()).unwrap_or_default();
        let kinds = (0u16..).zip(counted).filter_map(|(kind, lost)| Some((ring::kind_name(kind)?.to_owned(), lost)));
        kinds.chain([("undecodable".to_owned(), self.undecodable)]).collect()
    }

    /// Why the agent is degraded: a control that a live session asked for is not in force, or records were lost.
    fn degraded(&self) -> Vec<String> {
        let mut why = Vec::new();
        for (id, live) in &self.sessions {
            for control in self.asked(live).into_iter().filter(|c| c.state == ControlState::Unavailable) {
                why.push(format!("session {id:.8} asks for control {}, which is unavailable", control.control));
            }
        }
        let lost: u64 = self.lost().values().sum();
        if lost > 0 {
            why.push(format!("{lost} records were lost"));
        }
        if self.parts.log.missed() > 0 {
            why.push(format!("{} records of evidence could not be written", self.parts.log.missed()));
        }
        why.extend(self.evidence_trouble.as_ref().map(|problem| format!("evidence is not on disk: {problem}")));
        why.extend(self.store_trouble());
        if let Ok(foreign @ 1..) = self.parts.kernel.foreign() {
            why.push(format!("{foreign} decisions fell on tasks outside the confinement and were not carried out"));
        }
        why
    }

    fn asked(&self, live: &Live) -> Vec<Control> {
        let names = controls::asked(&live.policy, look::is_script);
        let asked = self.parts.controls.iter().filter(|c| names.contains(&c.control.as_str()));
        asked.map(|control| self.control_for(control, live.start.attached.is_some())).collect()
    }
}

fn of<'m>(live: &Live, members: &'m [Member]) -> impl Iterator<Item = &'m Member> {
    let reference = live.reference;
    members.iter().filter(move |m| m.slot == reference.slot && m.generation == reference.generation)
}

fn summary(policy: &Policy) -> Vec<String> {
    let summary = policy.summary();
    summary.rules.iter().map(|r| format!("{} {} {} ({})", r.scope, r.effect, r.what, r.id)).collect()
}

/// How long an end took, as the sockets spell it.
pub(super) fn wire_took(took: Took) -> wire::Took {
    wire::Took { mark_ms: took.mark_ms, members_ms: took.members_ms, flows_ms: took.flows_ms }
}

fn wire_ends(ends: &Ends) -> wire::Ends {
    let spread = |spread: &Spread| wire::Spread { counts: spread.counts.to_vec(), max_ms: spread.max_ms };
    let (mark, members, flows) = (spread(&ends.mark), spread(&ends.members), spread(&ends.flows));
    wire::Ends { bounds_ms: SPREAD_MS.to_vec(), mark, members, flows }
}

/// A control as the sockets spell it.
#[must_use]
pub fn wire_control(control: &Control) -> wire::Control {
    let state = match control.state {
        ControlState::Enforced => wire::ControlState::Enforced,
        ControlState::BestEffort => wire::ControlState::BestEffort,
        ControlState::Observe => wire::ControlState::Observe,
        ControlState::Unavailable => wire::ControlState::Unavailable,
    };
    wire::Control { control: control.control.clone(), state, why: control.why.clone().unwrap_or_default() }
}
