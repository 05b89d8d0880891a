//! The maps as the agent uses them: their handles, labels, the rings, and what is counted for the whole host. What is
//! written for policies is in `tables.rs`, and for sessions in `sessions.rs`.

use std::{
    collections::BTreeMap,
    error::Error,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::atomic::{Ordering, fence},
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, HashOfMaps, IterableMap as _, LpmTrie, Map, MapData, MapError, PerCpuArray, RingBuf},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tipstaff_common::{
    event::KINDS,
    label::{CONFINED, Label, Mirrored, SessionRef, TREE},
    limits::UNIX_NAME,
    rule::{ExecEntry, ExecKey, FileId, NetEntry, PortList, ProgramEntry, UnixKey},
    session::{PolicyEntry, SessionConfig, SessionCounters},
    socket::Destination,
};

use super::{
    Kernel, KernelError,
    error::with_sources,
    reader::LabelReader,
    ring::{self, DecodeError, Event},
    sys,
};

type ExecRules = HashMap<MapData, ExecKey, ProgramEntry>;
pub(super) type NetRules = LpmTrie<MapData, [u8; 16], NetEntry>;
type PortLists = HashMap<MapData, u32, PortList>;
type UnixRules = HashMap<MapData, UnixKey, ExecEntry>;
/// `Label::exec_id` of a task whose present program was never judged.
const NEVER_JUDGED: u32 = u32::MAX;

/// Handles of the maps.
pub struct Maps {
    labels: Map,
    /// Socket-local storage, which aya has no type for.
    pub(super) socket_labels: Map,
    pub(super) mirror: HashMap<MapData, u64, Mirrored>,
    pub(super) cgroups: HashMap<MapData, u64, SessionRef>,
    pub(super) states: Array<MapData, u64>,
    pub(super) configs: Array<MapData, SessionConfig>,
    pub(super) counters: Array<MapData, SessionCounters>,
    pub(super) policies: Array<MapData, PolicyEntry>,
    pub(super) exec_rules: HashOfMaps<MapData, u32, ExecRules>,
    pub(super) net_rules: HashOfMaps<MapData, u32, NetRules>,
    pub(super) listen_rules: HashOfMaps<MapData, u32, NetRules>,
    pub(super) inbound_rules: HashOfMaps<MapData, u32, NetRules>,
    pub(super) port_lists: HashOfMaps<MapData, u32, PortLists>,
    pub(super) unix_rules: HashOfMaps<MapData, u32, UnixRules>,
    pub(super) destinations: HashMap<MapData, Destination, u32>,
    generation: Array<MapData, u32>,
    foreign: Array<MapData, u64>,
    pub(super) protected: HashMap<MapData, FileId, u32>,
    pub(super) delegates: LpmTrie<MapData, [u8; UNIX_NAME], u32>,
    /// Device, inode and time of change of each folder in `SPOOLS`, as they were when they were last looked at.
    pub(super) spools: Vec<Option<(u64, u64, i64, i64)>>,
    lost: PerCpuArray<MapData, u64>,
    /// `None` while the engine reads them.
    rings: Option<Rings>,
    reader_awake: Array<MapData, u64>,
}

/// The two rings.
pub struct Rings {
    verdicts: RingBuf<MapData>,
    activity: RingBuf<MapData>,
}

impl Rings {
    /// Hands the next record to `take`, verdicts first; `None`: there is none. The record stays in its ring until `take`
    /// is done: an agent that dies meanwhile leaves it to the next one.
    pub fn next<R>(&mut self, take: impl FnOnce(Result<Event, DecodeError>) -> R) -> Option<R> {
        if let Some(item) = self.verdicts.next() {
            return Some(take(ring::decode(&item)));
        }
        self.activity.next().map(|item| take(ring::decode(&item)))
    }
}

impl Maps {
    /// Takes the maps out of a loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            labels: raw(ebpf, "TASK_LABELS")?,
            socket_labels: raw(ebpf, "SOCKET_LABELS")?,
            mirror: typed(ebpf, "MIRROR")?,
            cgroups: typed(ebpf, "CGROUP_SESSIONS")?,
            states: typed(ebpf, "SESSION_STATE")?,
            configs: typed(ebpf, "SESSION_CONFIG")?,
            counters: typed(ebpf, "SESSION_COUNTERS")?,
            policies: typed(ebpf, "POLICIES")?,
            exec_rules: typed(ebpf, "EXEC_RULES")?,
            net_rules: typed(ebpf, "NET_RULES")?,
            listen_rules: typed(ebpf, "LISTEN_RULES")?,
            inbound_rules: typed(ebpf, "INBOUND_RULES")?,
            port_lists: typed(ebpf, "PORT_LISTS")?,
            unix_rules: typed(ebpf, "UNIX_RULES")?,
            destinations: typed(ebpf, "DESTINATIONS")?,
            generation: typed(ebpf, "GENERATION")?,
            foreign: typed(ebpf, "FOREIGN")?,
            protected: typed(ebpf, "PROTECTED")?,
            delegates: typed(ebpf, "DELEGATES")?,
            spools: Vec::new(),
            lost: typed(ebpf, "LOST")?,
            rings: Some(Rings { verdicts: typed(ebpf, "VERDICTS")?, activity: typed(ebpf, "ACTIVITY")? }),
            reader_awake: typed(ebpf, "READER_AWAKE")?,
        })
    }
}

fn raw(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, KernelError> {
    let what = || KernelError::Missing { what: format!("map {name} in the kernel object"), hint: "; rebuild" };
    ebpf.take_map(name).ok_or_else(what)
}

fn typed<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, KernelError> {
    raw(ebpf, name)?.try_into().map_err(failed("open", name))
}

/// A descriptor of each map of a loaded object.
pub(super) fn descriptors(ebpf: &Ebpf) -> Result<BTreeMap<String, OwnedFd>, KernelError> {
    let mut descriptors = BTreeMap::new();
    for (name, map) in ebpf.maps() {
        let (Map::Array(data)
        | Map::HashMap(data)
        | Map::HashOfMaps(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data)
        | Map::Unsupported(data)) = map
        else {
            return Err(KernelError::Missing { what: format!("a known type of map {name}"), hint: "; rebuild" });
        };
        let own = data.fd().as_fd().try_clone_to_owned().map_err(KernelError::file("duplicate", name))?;
        descriptors.insert(name.to_owned(), own);
    }
    Ok(descriptors)
}

/// The descriptor of a local-storage map.
pub(super) fn storage<'m>(map: &'m Map, name: &str) -> Result<BorrowedFd<'m>, KernelError> {
    match map {
        Map::Unsupported(data) | Map::SkStorage(data) => Ok(data.fd().as_fd()),
        _ => Err(KernelError::Missing { what: format!("map {name} of the right type"), hint: "; rebuild" }),
    }
}

pub(super) fn failed<E: Into<Box<dyn Error>>>(
    action: &'static str,
    map: &'static str,
) -> impl FnOnce(E) -> KernelError {
    move |error| KernelError::Map { action, map, reason: with_sources(error.into().as_ref()) }
}

/// What a removal came to. An entry that is gone is as good as removed: an agent may have died half way.
pub(super) fn removed(map: &'static str, outcome: Result<(), MapError>) -> Result<(), KernelError> {
    match outcome {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other.map_err(failed("write", map)),
    }
}

/// Reads entry `index` of an array.
pub(super) fn entry<V: Pod>(map: &Array<MapData, V>, index: u32, name: &'static str) -> Result<V, KernelError> {
    map.get(&index, 0).map_err(failed("read", name))
}

impl Kernel {
    /// Makes one load of programs the one that speaks.
    pub(super) fn set_speaker(&mut self, generation: u32) -> Result<(), KernelError> {
        self.maps.generation.set(0, generation, 0).map_err(failed("write", "GENERATION"))
    }

    /// Decisions that were not carried out because the task lies outside the confinement.
    pub fn foreign(&self) -> Result<u64, KernelError> {
        entry(&self.maps.foreign, 0, "FOREIGN")
    }

    /// Records that found no room in their ring since the programs were loaded, by kind.
    pub fn lost(&self) -> Result<[u64; KINDS], KernelError> {
        let mut sums = [0; KINDS];
        for (kind, sum) in (0u32..).zip(&mut sums) {
            let each = self.maps.lost.get(&kind, 0).map_err(failed("read", "LOST"))?;
            *sum = each.iter().sum();
        }
        Ok(sums)
    }

    /// Labels a process's main thread.
    pub fn label(&mut self, task: BorrowedFd<'_>, session: SessionRef) -> Result<(), KernelError> {
        self.label_with(task, session, CONFINED)
    }

    /// As [`Kernel::label`]; what descends from the process is labelled by [`Kernel::label_heirs`].
    pub fn label_tree(&mut self, task: BorrowedFd<'_>, session: SessionRef) -> Result<(), KernelError> {
        self.label_with(task, session, CONFINED | TREE)
    }

    fn label_with(&mut self, task: BorrowedFd<'_>, session: SessionRef, flags: u32) -> Result<(), KernelError> {
        let SessionRef { slot, generation } = session;
        let label = Label { slot, generation, flags, exec_id: NEVER_JUDGED };
        sys::set_label(self.labels()?, task, label).map_err(failed("write", "TASK_LABELS"))
    }

    /// Takes a label back that was given a moment ago.
    pub fn unlabel(&mut self, task: BorrowedFd<'_>) -> Result<(), KernelError> {
        sys::remove_label(self.labels()?, task).map_err(failed("write", "TASK_LABELS"))
    }

    /// The session that a process's main thread is labelled for.
    pub fn label_of(&self, task: BorrowedFd<'_>) -> Result<Option<SessionRef>, KernelError> {
        let label = sys::label_of(self.labels()?, task).map_err(failed("read", "TASK_LABELS"))?;
        Ok(label.map(|l| SessionRef { slot: l.slot, generation: l.generation }))
    }

    /// A handle that answers "is this process labelled" from other threads.
    pub fn label_reader(&self) -> Result<LabelReader, KernelError> {
        let labels = self.labels()?.try_clone_to_owned().map_err(failed("share", "TASK_LABELS"))?;
        let mirror = self.maps.mirror.map().fd().as_fd().try_clone_to_owned().map_err(failed("share", "MIRROR"))?;
        Ok(LabelReader::new(labels, mirror))
    }

    fn labels(&self) -> Result<BorrowedFd<'_>, KernelError> {
        storage(&self.maps.labels, "TASK_LABELS")
    }

    /// The two rings' descriptors, readable when there are records.
    #[must_use]
    pub fn ring_descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.maps.rings.iter().flat_map(|rings| [rings.verdicts.as_fd(), rings.activity.as_fd()]).collect()
    }

    /// Says whether the rings are looked into without being told. While they are, no record wakes anybody.
    pub fn set_reader_awake(&mut self, awake: bool) -> Result<(), KernelError> {
        self.maps.reader_awake.set(0, u64::from(awake), 0).map_err(failed("write", "READER_AWAKE"))?;
        // whoever asks next what the rings hold asks after the word was written
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Whether nothing is in the rings, not even a record that is still being written.
    pub fn rings_are_empty(&self) -> io::Result<bool> {
        // the kernel compares how far was reserved with how far was read (`ringbuf_map_poll`, kernel/bpf/ringbuf.c)
        let polled = self.ring_descriptors().into_iter().map(|ring| PollFd::new(ring, PollFlags::POLLIN));
        Ok(poll(&mut polled.collect::<Vec<_>>(), PollTimeout::ZERO)? == 0)
    }

    /// Takes the rings out, so that a record can be handled while it still lies in its ring; give them back with
    /// [`Kernel::return_rings`].
    pub const fn lend_rings(&mut self) -> Option<Rings> {
        self.maps.rings.take()
    }

    /// Takes the rings back.
    pub fn return_rings(&mut self, rings: Rings) {
        self.maps.rings = Some(rings);
    }
}
