//! The maps as the agent uses them: sessions in slots, policies in revisions, counters, labels. The order of writes is
//! what makes a change visible in one step; each function says what that step is.

use std::{
    collections::BTreeMap,
    collections::HashSet,
    error::Error,
    fs::{self, File},
    io,
    mem::offset_of,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::atomic::{Ordering, fence},
    thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf, Pod,
    maps::{
        Array, HashMap, HashOfMaps, IterableMap as _, LpmTrie, Map, MapData, MapError, PerCpuArray, RingBuf,
        lpm_trie::Key,
    },
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tipstaff_common::{
    event::KINDS,
    label::{CONFINED, Label, Mirrored, SessionRef, TREE},
    limits::UNIX_NAME,
    privilege::{MOUNTED, SPOOLS, WHOLE},
    rule::{ExecEntry, ExecKey, FileId, NetEntry, ProgramEntry, UnixKey},
    session::{
        Budgets, HAS_INBOUND_RULES, HAS_LISTEN_RULES, HAS_UNIX_RULES, MODE_ENFORCE, MODE_OBSERVE, PolicyEntry,
        STATE_ACTIVE, STATE_ENDED, STATE_FREE, STATE_UNDONE, SessionConfig, SessionCounters, state_word,
    },
    socket::Destination,
};

use super::{
    Kernel, KernelError,
    error::with_sources,
    identity::open_path,
    reader::LabelReader,
    ring::{self, DecodeError, Event},
    sys::{self, MappedArray},
};

type ExecRules = HashMap<MapData, ExecKey, ProgramEntry>;
type NetRules = LpmTrie<MapData, [u8; 16], NetEntry>;
type UnixRules = HashMap<MapData, UnixKey, ExecEntry>;
/// `BPF_F_NO_PREALLOC`, which tries must have.
const NO_PREALLOC: u32 = 1;
/// `Label::exec_id` of a task whose present program was never judged.
const NEVER_JUDGED: u32 = u32::MAX;

/// Prefix length in bits of 128, address, rules.
pub type AddressRules = (u32, [u8; 16], NetEntry);

/// A revision of rules to put into the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision<'a> {
    /// Rules on programs.
    pub exec: &'a [(ExecKey, ProgramEntry)],
    /// Rules on addresses.
    pub net: &'a [AddressRules],
    /// Rules on local addresses, as above.
    pub listen: &'a [AddressRules],
    /// Rules on who may come in, as above.
    pub inbound: &'a [AddressRules],
    /// Rules on unix sockets.
    pub unix: &'a [(UnixKey, ExecEntry)],
    /// Defaults and flags; its `revision` is the number to store it under. Which inner maps there are is added to the
    /// flags.
    pub entry: PolicyEntry,
}

/// Handles of the maps.
pub struct Maps {
    labels: Map,
    /// Socket-local storage, which aya has no type for.
    pub(super) socket_labels: Map,
    mirror: HashMap<MapData, u64, Mirrored>,
    cgroups: HashMap<MapData, u64, SessionRef>,
    states: Array<MapData, u64>,
    configs: Array<MapData, SessionConfig>,
    counters: Array<MapData, SessionCounters>,
    policies: Array<MapData, PolicyEntry>,
    exec_rules: HashOfMaps<MapData, u32, ExecRules>,
    net_rules: HashOfMaps<MapData, u32, NetRules>,
    listen_rules: HashOfMaps<MapData, u32, NetRules>,
    inbound_rules: HashOfMaps<MapData, u32, NetRules>,
    unix_rules: HashOfMaps<MapData, u32, UnixRules>,
    destinations: HashMap<MapData, Destination, u32>,
    generation: Array<MapData, u32>,
    foreign: Array<MapData, u64>,
    protected: HashMap<MapData, FileId, u32>,
    delegates: LpmTrie<MapData, [u8; UNIX_NAME], u32>,
    /// Device, inode and time of change of each folder in `SPOOLS`, as they were when they were last looked at.
    spools: Vec<Option<(u64, u64, i64, i64)>>,
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

fn failed<E: Into<Box<dyn Error>>>(action: &'static str, map: &'static str) -> impl FnOnce(E) -> KernelError {
    move |error| KernelError::Map { action, map, reason: with_sources(error.into().as_ref()) }
}

/// What a removal came to. An entry that is gone is as good as removed: an agent may have died half way.
fn removed(map: &'static str, outcome: Result<(), MapError>) -> Result<(), KernelError> {
    match outcome {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other.map_err(failed("write", map)),
    }
}

/// Reads entry `index` of an array.
fn entry<V: Pod>(map: &Array<MapData, V>, index: u32, name: &'static str) -> Result<V, KernelError> {
    map.get(&index, 0).map_err(failed("read", name))
}

/// Inner maps have room for what they hold, and at least for one entry.
fn room(count: usize) -> u32 {
    u32::try_from(count.max(1)).unwrap_or(u32::MAX)
}

/// Makes an inner hash and puts it under a revision's number. How long the latter took.
fn put_hash<K: Pod, V: Pod>(
    outer: &mut HashOfMaps<MapData, u32, HashMap<MapData, K, V>>,
    revision: u32,
    rules: &[(K, V)],
    name: &'static str,
) -> Result<Duration, KernelError> {
    let mut inner = HashMap::create(room(rules.len()), 0).map_err(failed("make", name))?;
    let (keys, values): (Vec<K>, Vec<V>) = rules.iter().copied().unzip();
    if !sys::update_batch(&inner, &keys, &values).map_err(failed("write", name))? {
        for (key, value) in rules {
            inner.insert(key, value, 0).map_err(failed("write", name))?;
        }
    }
    let began = Instant::now();
    outer.insert(revision, &inner, 0).map_err(failed("write", name))?;
    Ok(began.elapsed())
}

/// Makes an inner trie and puts it under a revision's number. As above.
fn put_trie(
    outer: &mut HashOfMaps<MapData, u32, NetRules>,
    revision: u32,
    rules: &[AddressRules],
    name: &'static str,
) -> Result<Duration, KernelError> {
    let mut inner = NetRules::create(room(rules.len()), NO_PREALLOC).map_err(failed("make", name))?;
    let split = rules.iter().map(|(length, address, value)| (Key::new(*length, *address), *value));
    let (keys, values): (Vec<_>, Vec<NetEntry>) = split.unzip();
    if !sys::update_batch(&inner, &keys, &values).map_err(failed("write", name))? {
        for (key, value) in keys.iter().zip(&values) {
            inner.insert(key, value, 0).map_err(failed("write", name))?;
        }
    }
    let began = Instant::now();
    outer.insert(revision, &inner, 0).map_err(failed("write", name))?;
    Ok(began.elapsed())
}

impl Kernel {
    /// Puts a revision of rules in force as policy `policy`: the inner maps are complete before one write of the
    /// policy's entry makes them count.
    pub fn install(&mut self, policy: u32, revision: &Revision<'_>) -> Result<(), KernelError> {
        let maps = &mut self.maps;
        let mut entry = revision.entry;
        let number = entry.revision;
        for (empty, flag) in [
            (revision.listen.is_empty(), HAS_LISTEN_RULES),
            (revision.inbound.is_empty(), HAS_INBOUND_RULES),
            (revision.unix.is_empty(), HAS_UNIX_RULES),
        ] {
            entry.flags |= if empty { 0 } else { flag };
        }
        let has = |flag: u32| entry.flags & flag != 0;
        // each update of an outer map waits for RCU: side by side they wait once
        self.waited += thread::scope(|scope| {
            let exec = &mut maps.exec_rules;
            let mut parts = vec![scope.spawn(move || put_hash(exec, number, revision.exec, "EXEC_RULES"))];
            for (wanted, outer, rules, name) in [
                (true, &mut maps.net_rules, revision.net, "NET_RULES"),
                (has(HAS_LISTEN_RULES), &mut maps.listen_rules, revision.listen, "LISTEN_RULES"),
                (has(HAS_INBOUND_RULES), &mut maps.inbound_rules, revision.inbound, "INBOUND_RULES"),
            ] {
                if wanted {
                    parts.push(scope.spawn(move || put_trie(outer, number, rules, name)));
                }
            }
            if has(HAS_UNIX_RULES) {
                let unix = &mut maps.unix_rules;
                parts.push(scope.spawn(move || put_hash(unix, number, revision.unix, "UNIX_RULES")));
            }
            parts.into_iter().try_fold(Duration::ZERO, |longest, part| {
                let waited = part.join().map_err(|_panic| failed("write", "EXEC_RULES")("a thread panicked"))??;
                Ok(longest.max(waited))
            })
        })?;
        maps.policies.set(policy, entry, 0).map_err(failed("write", "POLICIES"))
    }

    /// How long all revisions that were put in force waited until no program used the outer maps as they were before (RCU).
    pub const fn waited(&self) -> Duration {
        self.waited
    }

    /// The rules on programs of a revision, as the programs have them.
    pub fn exec_rules(&self, revision: u32) -> Result<Vec<(ExecKey, ProgramEntry)>, KernelError> {
        let rules = self.maps.exec_rules.get(&revision, 0).map_err(failed("read", "EXEC_RULES"))?;
        rules.iter().collect::<Result<_, _>>().map_err(failed("read", "EXEC_RULES"))
    }

    /// The rules on unix sockets of a revision, as the programs have them.
    pub fn unix_rules(&self, revision: u32) -> Result<Vec<(UnixKey, ExecEntry)>, KernelError> {
        let rules = match self.maps.unix_rules.get(&revision, 0) {
            // a policy that says nothing of unix sockets has none
            Err(MapError::KeyNotFound) => return Ok(Vec::new()),
            rules => rules.map_err(failed("read", "UNIX_RULES"))?,
        };
        rules.iter().collect::<Result<_, _>>().map_err(failed("read", "UNIX_RULES"))
    }

    /// The rules on destinations, local addresses and peers of a revision, as the programs have them.
    pub fn address_rules(&self, revision: u32) -> Result<[Vec<AddressRules>; 3], KernelError> {
        let of = |outer: &HashOfMaps<MapData, u32, NetRules>, name: &'static str| {
            let rules = match outer.get(&revision, 0) {
                // a policy that says nothing of them has none
                Err(MapError::KeyNotFound) => return Ok(Vec::new()),
                rules => rules.map_err(failed("read", name))?,
            };
            let all = rules.iter().map(|rule| rule.map(|(key, entry)| (key.prefix_len(), key.data(), entry)));
            all.collect::<Result<_, _>>().map_err(failed("read", name))
        };
        let maps = &self.maps;
        Ok([
            of(&maps.net_rules, "NET_RULES")?,
            of(&maps.listen_rules, "LISTEN_RULES")?,
            of(&maps.inbound_rules, "INBOUND_RULES")?,
        ])
    }

    /// Takes a policy out of force; no session may use it any more.
    pub fn uninstall(&mut self, policy: u32, revision: u32) -> Result<(), KernelError> {
        let maps = &mut self.maps;
        // the entry goes last: it knows which tables there are, also for an agent that goes on where another died
        let flags = entry(&maps.policies, policy, "POLICIES")?.flags;
        removed("EXEC_RULES", maps.exec_rules.remove(&revision))?;
        removed("NET_RULES", maps.net_rules.remove(&revision))?;
        if flags & HAS_LISTEN_RULES != 0 {
            removed("LISTEN_RULES", maps.listen_rules.remove(&revision))?;
        }
        if flags & HAS_INBOUND_RULES != 0 {
            removed("INBOUND_RULES", maps.inbound_rules.remove(&revision))?;
        }
        if flags & HAS_UNIX_RULES != 0 {
            removed("UNIX_RULES", maps.unix_rules.remove(&revision))?;
        }
        maps.policies.set(policy, PolicyEntry::default(), 0).map_err(failed("write", "POLICIES"))
    }

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

    /// The revision of a policy that is in force; 0: none.
    pub fn revision(&self, policy: u32) -> Result<u32, KernelError> {
        Ok(entry(&self.maps.policies, policy, "POLICIES")?.revision)
    }

    /// The cgroups that have sessions, by id.
    #[must_use]
    pub fn session_cgroups(&self) -> Vec<(u64, SessionRef)> {
        self.maps.cgroups.iter().filter_map(Result::ok).collect()
    }

    /// Makes one load of programs the one that speaks.
    pub(super) fn set_speaker(&mut self, generation: u32) -> Result<(), KernelError> {
        self.maps.generation.set(0, generation, 0).map_err(failed("write", "GENERATION"))
    }

    /// What a session did so far.
    pub fn counters(&self, slot: u32) -> Result<SessionCounters, KernelError> {
        entry(&self.maps.counters, slot, "SESSION_COUNTERS")
    }

    /// Keeps members from changing these files and what is in these folders, and from unmounting what the pins are in. What
    /// is not there is left out.
    pub fn protect(&mut self, whole: &[PathBuf], pins: &Path) -> Result<(), KernelError> {
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
        let root = pins.ancestors().take_while(|folder| device(folder) == device(pins)).last();
        // the root may be the pins' own folder: the stronger word is the last
        let wanted = root.map(|root| (root, MOUNTED)).into_iter();
        let wanted = wanted.chain(whole.iter().map(PathBuf::as_path).chain([pins]).map(|path| (path, WHOLE)));
        let (open, how): (Vec<File>, Vec<u32>) =
            wanted.filter_map(|(path, how)| Some((open_path(path).ok()?, how))).unzip();
        for (seen, how) in self.see(&open)?.into_iter().zip(how) {
            let Some(seen) = seen else { continue };
            self.maps.protected.insert(seen.id, how, 0).map_err(failed("write", "PROTECTED"))?;
        }
        Ok(())
    }

    /// Says by what names the sockets are known that take class `delegation`: bits that count and name, and the number of the
    /// place. Others than these are none any more.
    pub fn set_delegates(&mut self, names: &[(u32, [u8; UNIX_NAME])]) -> Result<(), KernelError> {
        let map = &mut self.maps.delegates;
        let old: Vec<Key<[u8; UNIX_NAME]>> = map.keys().filter_map(Result::ok).collect();
        for key in old.iter().filter(|key| !names.contains(&(key.prefix_len(), key.data()))) {
            removed("DELEGATES", map.remove(key))?;
        }
        for ((bits, name), number) in names.iter().zip(1..) {
            map.insert(&Key::new(*bits, *name), number, 0).map_err(failed("write", "DELEGATES"))?;
        }
        Ok(())
    }

    /// Takes these folders and files for those out of which daemons start programs; `first` is the number of the first.
    /// What is not there is left out, and is no such folder any more.
    pub fn set_spools(&mut self, folders: &[&str], first: u32) -> Result<(), KernelError> {
        let look = |path: &&str| fs::metadata(path).ok().map(|is| (is.dev(), is.ino(), is.ctime(), is.ctime_nsec()));
        // looked at before what is found is written: what changes meanwhile is looked at again
        let spools: Vec<_> = folders.iter().map(look).collect();
        if spools == self.maps.spools {
            return Ok(());
        }
        let wanted =
            folders.iter().zip(first..).filter_map(|(path, number)| Some((open_path(path.as_ref()).ok()?, number)));
        let (open, numbers): (Vec<File>, Vec<u32>) = wanted.unzip();
        let seen = self.see(&open)?;
        let found: BTreeMap<FileId, u32> =
            seen.into_iter().zip(numbers).filter_map(|(seen, number)| Some((seen?.id, SPOOLS + number))).collect();
        let map = &mut self.maps.protected;
        let known: BTreeMap<FileId, u32> = map.iter().filter_map(Result::ok).collect();
        for (id, mark) in &known {
            if *mark >= SPOOLS && !found.contains_key(id) {
                removed("PROTECTED", map.remove(id))?;
            }
        }
        for (id, mark) in found {
            // what is the agent's own stays that
            if known.get(&id).is_none_or(|known| *known >= SPOOLS && *known != mark) {
                map.insert(id, mark, 0).map_err(failed("write", "PROTECTED"))?;
            }
        }
        self.maps.spools = spools;
        Ok(())
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

    /// Makes a session that never came to be one whose labels [`Kernel::label_heirs`] takes off again; nothing is refused
    /// to who still carries one.
    pub fn mark_undone(&mut self, session: SessionRef) -> Result<(), KernelError> {
        let config = entry(&self.maps.configs, session.slot, "SESSION_CONFIG")?;
        let config = SessionConfig { mode: MODE_OBSERVE, deadline: u64::MAX, ..config };
        self.maps.configs.set(session.slot, config, 0).map_err(failed("write", "SESSION_CONFIG"))?;
        self.set_state(session, STATE_UNDONE)
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
