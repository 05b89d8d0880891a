//! The tables of policies: rules in revisions, and what no member may touch whatever its policy. The order of writes
//! is what makes a change visible in one step; each function says what that step is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::mpsc::{self, Sender},
    thread,
    time::{Duration, Instant},
};

use aya::{
    Pod,
    maps::{HashMap, HashOfMaps, MapData, MapError, lpm_trie::Key},
};
use tipstaff_common::{
    limits::UNIX_NAME,
    privilege::{ABOVE, MOUNTED, SPOOLS, WHOLE},
    rule::{ExecEntry, ExecKey, FileId, NetEntry, PortRule, ProgramEntry, UnixKey},
    session::{HAS_INBOUND_RULES, HAS_LISTEN_RULES, HAS_PORT_LISTS, HAS_UNIX_RULES, PolicyEntry},
};

use super::{
    Kernel, KernelError,
    identity::open_path,
    maps::{NetRules, entry, failed, removed},
    port_lists::{PortLists, rules_of},
    sys,
};

/// `BPF_F_NO_PREALLOC`, which tries must have.
const NO_PREALLOC: u32 = 1;

/// Entries of a trie that are written by one call: as many as the processor's cache holds.
const AT_ONCE: usize = 512;

/// Prefix length in bits of 128, address, rules: denials first.
pub type AddressRules<R> = (u32, [u8; 16], R);

/// A revision of rules to put into the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision<'a> {
    /// Rules on programs.
    pub exec: &'a [(ExecKey, ProgramEntry)],
    /// Rules on addresses.
    pub net: &'a [AddressRules<&'a [PortRule]>],
    /// Rules on local addresses, as above.
    pub listen: &'a [AddressRules<&'a [PortRule]>],
    /// Rules on who may come in, as above.
    pub inbound: &'a [AddressRules<&'a [PortRule]>],
    /// Rules on unix sockets.
    pub unix: &'a [(UnixKey, ExecEntry)],
    /// Defaults and flags; its `revision` is the number to store it under. Which inner maps there are is added to the
    /// flags.
    pub entry: PolicyEntry,
}

/// Inner maps have room for what they hold, and at least for one entry.
fn room(count: usize) -> u32 {
    u32::try_from(count.max(1)).unwrap_or(u32::MAX)
}

/// Makes an inner hash, lets `made` go, and puts it under a revision's number.
fn put_hash<K: Pod, V: Pod>(
    outer: &mut HashOfMaps<MapData, u32, HashMap<MapData, K, V>>,
    revision: u32,
    rules: &[(K, V)],
    name: &'static str,
    made: Sender<()>,
) -> Result<(), KernelError> {
    let mut inner = HashMap::create(room(rules.len()), 0).map_err(failed("make", name))?;
    let (keys, values): (Vec<K>, Vec<V>) = rules.iter().copied().unzip();
    if !sys::update_batch(&inner, &keys, &values).map_err(failed("write", name))? {
        for (key, value) in rules {
            inner.insert(key, value, 0).map_err(failed("write", name))?;
        }
    }
    drop(made);
    outer.insert(revision, &inner, 0).map_err(failed("write", name))
}

/// Makes an inner trie and puts it under a revision's number. As above.
fn put_trie(
    outer: &mut HashOfMaps<MapData, u32, NetRules>,
    revision: u32,
    rules: &[AddressRules<NetEntry>],
    name: &'static str,
    made: Sender<()>,
) -> Result<(), KernelError> {
    let mut inner = NetRules::create(room(rules.len()), NO_PREALLOC).map_err(failed("make", name))?;
    for some in rules.chunks(AT_ONCE) {
        let split = some.iter().map(|(length, address, value)| (Key::new(*length, *address), *value));
        let (keys, values): (Vec<_>, Vec<NetEntry>) = split.unzip();
        if !sys::update_batch(&inner, &keys, &values).map_err(failed("write", name))? {
            for (key, value) in keys.iter().zip(&values) {
                inner.insert(key, value, 0).map_err(failed("write", name))?;
            }
        }
    }
    drop(made);
    outer.insert(revision, &inner, 0).map_err(failed("write", name))
}

impl Kernel {
    /// Puts a revision of rules in force as policy `policy`: the inner maps are complete before one write of the
    /// policy's entry makes them count. `meanwhile` is done before that write, beside the kernel's waiting (RCU).
    pub fn install<R>(
        &mut self,
        policy: u32,
        revision: &Revision<'_>,
        meanwhile: impl FnOnce() -> R,
    ) -> Result<R, KernelError> {
        let maps = &mut self.maps;
        let mut entry = revision.entry;
        let number = entry.revision;
        let mut lists = PortLists::default();
        let mut entries = |rules: &[AddressRules<&[PortRule]>]| -> Result<Vec<_>, KernelError> {
            rules.iter().map(|(length, address, rules)| Ok((*length, *address, lists.entry(rules)?))).collect()
        };
        let (net, listen, inbound) = (entries(revision.net)?, entries(revision.listen)?, entries(revision.inbound)?);
        for (empty, flag) in [
            (revision.listen.is_empty(), HAS_LISTEN_RULES),
            (revision.inbound.is_empty(), HAS_INBOUND_RULES),
            (lists.all().is_empty(), HAS_PORT_LISTS),
            (revision.unix.is_empty(), HAS_UNIX_RULES),
        ] {
            entry.flags |= if empty { 0 } else { flag };
        }
        let has = |flag: u32| entry.flags & flag != 0;
        // each update of an outer map waits for RCU: side by side they wait once
        let (told, made) = mpsc::channel();
        let (waited, done) = thread::scope(|scope| {
            let (exec, made_exec) = (&mut maps.exec_rules, told.clone());
            let mut parts = vec![scope.spawn(move || put_hash(exec, number, revision.exec, "EXEC_RULES", made_exec))];
            for (wanted, outer, rules, name) in [
                (true, &mut maps.net_rules, net, "NET_RULES"),
                (has(HAS_LISTEN_RULES), &mut maps.listen_rules, listen, "LISTEN_RULES"),
                (has(HAS_INBOUND_RULES), &mut maps.inbound_rules, inbound, "INBOUND_RULES"),
            ] {
                if wanted {
                    let told = told.clone();
                    parts.push(scope.spawn(move || put_trie(outer, number, &rules, name, told)));
                }
            }
            if has(HAS_PORT_LISTS) {
                let (outer, lists, told) = (&mut maps.port_lists, lists.all(), told.clone());
                parts.push(scope.spawn(move || put_hash(outer, number, lists, "PORT_LISTS", told)));
            }
            if has(HAS_UNIX_RULES) {
                let (unix, told) = (&mut maps.unix_rules, told.clone());
                parts.push(scope.spawn(move || put_hash(unix, number, revision.unix, "UNIX_RULES", told)));
            }
            drop(told);
            // all are made, or have failed: what is left of them is waiting
            let _all = made.iter().count();
            let done = meanwhile();
            let waits = Instant::now();
            parts.into_iter().try_for_each(|part| {
                part.join().map_err(|_panic| failed("write", "EXEC_RULES")("a thread panicked"))?
            })?;
            Ok::<_, KernelError>((waits.elapsed(), done))
        })?;
        self.waited += waited;
        maps.policies.set(policy, entry, 0).map_err(failed("write", "POLICIES"))?;
        Ok(done)
    }

    /// How long all revisions that were put in force waited until no program used the outer maps as they were before (RCU), and had
    /// nothing else to do.
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
    pub fn address_rules(&self, revision: u32) -> Result<[Vec<AddressRules<Vec<PortRule>>>; 3], KernelError> {
        let lists = match self.maps.port_lists.get(&revision, 0) {
            // all rules have room in their entries
            Err(MapError::KeyNotFound) => None,
            lists => Some(lists.map_err(failed("read", "PORT_LISTS"))?),
        };
        let list = |number: u32| lists.as_ref()?.get(&number, 0).ok();
        let of = |outer: &HashOfMaps<MapData, u32, NetRules>, name: &'static str| {
            let rules = match outer.get(&revision, 0) {
                // a policy that says nothing of them has none
                Err(MapError::KeyNotFound) => return Ok(Vec::new()),
                rules => rules.map_err(failed("read", name))?,
            };
            let all = rules.iter().map(|rule| {
                let (key, entry) = rule.map_err(failed("read", name))?;
                let gone = || failed("read", "PORT_LISTS")("an entry's list is not there");
                Ok((key.prefix_len(), key.data(), rules_of(&entry, list).ok_or_else(gone)?))
            });
            all.collect()
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
        if flags & HAS_PORT_LISTS != 0 {
            removed("PORT_LISTS", maps.port_lists.remove(&revision))?;
        }
        if flags & HAS_UNIX_RULES != 0 {
            removed("UNIX_RULES", maps.unix_rules.remove(&revision))?;
        }
        maps.policies.set(policy, PolicyEntry::default(), 0).map_err(failed("write", "POLICIES"))
    }

    /// The revision of a policy that is in force; 0: none.
    pub fn revision(&self, policy: u32) -> Result<u32, KernelError> {
        Ok(entry(&self.maps.policies, policy, "POLICIES")?.revision)
    }

    /// Keeps members from changing these files and what is in these folders, from unmounting what the pins are in, and from
    /// putting something else in the place of a folder above. What is not there is left out.
    pub fn protect(&mut self, whole: &[PathBuf], pins: &Path) -> Result<(), KernelError> {
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
        let root = pins.ancestors().take_while(|folder| device(folder) == device(pins)).last();
        let own: Vec<&Path> = whole.iter().map(PathBuf::as_path).chain([pins]).collect();
        let above = folders_above(&own);
        // one folder may be all of it: the strongest word is the last
        let wanted = above.iter().map(|folder| (folder.as_path(), ABOVE));
        let wanted = wanted.chain(root.map(|root| (root, MOUNTED))).chain(own.iter().map(|path| (*path, WHOLE)));
        let (open, how): (Vec<File>, Vec<u32>) =
            wanted.filter_map(|(path, how)| Some((open_path(path).ok()?, how))).unzip();
        let seen = self.see(&open)?;
        let found: BTreeMap<FileId, u32> =
            seen.into_iter().zip(how).filter_map(|(seen, how)| Some((seen?.id, how))).collect();
        let map = &mut self.maps.protected;
        let known: BTreeMap<FileId, u32> = map.iter().filter_map(Result::ok).collect();
        // an agent with other folders had others above them
        for (id, mark) in &known {
            if *mark == ABOVE && !found.contains_key(id) {
                removed("PROTECTED", map.remove(id))?;
            }
        }
        // what is the agent's own comes first, should there be no room for all
        let mut found: Vec<(FileId, u32)> = found.into_iter().collect();
        found.sort_by_key(|(_, mark)| *mark);
        for (id, mark) in found {
            // what was an agent's own, or is a scheduler's, stays that
            if mark != ABOVE || !known.contains_key(&id) {
                map.insert(id, mark, 0).map_err(failed("write", "PROTECTED"))?;
            }
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
            if known.get(&id).is_none_or(|known| *known == ABOVE || (*known >= SPOOLS && *known != mark)) {
                map.insert(id, mark, 0).map_err(failed("write", "PROTECTED"))?;
            }
        }
        self.maps.spools = spools;
        Ok(())
    }
}

/// The folders above these, by the names that they are given by and by where these lead.
fn folders_above(paths: &[&Path]) -> BTreeSet<PathBuf> {
    let led_to = paths.iter().filter_map(|path| fs::canonicalize(path).ok());
    let all = paths.iter().map(|path| path.to_path_buf()).chain(led_to);
    all.flat_map(|path| path.ancestors().skip(1).map(Path::to_path_buf).collect::<Vec<_>>()).collect()
}
