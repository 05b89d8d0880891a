//! The few calls of bpf(2) that tests and benchmarks make themselves, on what an agent pinned: to bring about what the kernel
//! cannot be asked for, and to count runs of programs.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::sandbox::Sandbox;

/// `enum bpf_cmd` (`include/uapi/linux/bpf.h`, 6.18).
const MAP_CREATE: libc::c_int = 0;
const LOOKUP: libc::c_int = 1;
const UPDATE: libc::c_int = 2;
const DELETE: libc::c_int = 3;
const GET_NEXT_KEY: libc::c_int = 4;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BTF_GET_FD_BY_ID: libc::c_int = 19;
const BTF_GET_NEXT_ID: libc::c_int = 23;
const UPDATE_BATCH: libc::c_int = 26;
const DELETE_BATCH: libc::c_int = 27;
const ENABLE_STATS: libc::c_int = 32;

/// A pinned map.
#[derive(Debug)]
pub(crate) struct Map(OwnedFd);

/// What a map is like, as `BPF_MAP_CREATE` reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) kind: u32,
    pub(crate) key: u32,
    pub(crate) value: u32,
    pub(crate) entries: u32,
    pub(crate) flags: u32,
}

/// As `BPF_OBJ_GET` and `BPF_OBJ_PIN` read it.
#[repr(C)]
struct ObjGet {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// As the operations on one element read it.
#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// As the operations on many elements read it.
#[repr(C)]
struct Batch {
    input: u64,
    output: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

impl Map {
    /// The map `name` of the sandbox's agent.
    pub(crate) fn of(s: &Sandbox, name: &str) -> Result<Self> {
        let found = find(s.pins(), &format!("map_{name}")).with_context(|| format!("no map {name} is pinned"))?;
        Ok(Self(pinned(&found)?))
    }

    /// A new map, which nothing uses.
    pub(crate) fn make(shape: Shape) -> Result<Self> {
        descriptor(MAP_CREATE, &shape).map(Self).with_context(|| format!("{shape:?}"))
    }

    /// Pins it.
    pub(crate) fn pin(&self, path: &Path) -> Result<()> {
        let path = CString::new(path.as_os_str().as_encoded_bytes())?;
        let request = ObjGet { path: path.as_ptr() as u64, descriptor: self.number(), flags: 0 };
        call(OBJ_PIN, &request).map(drop)
    }

    /// What it is like.
    pub(crate) fn shape(&self) -> Result<Shape> {
        // the beginning of `struct bpf_map_info`: type, id, key size, value size, entries, flags
        let mut info = [0_u32; 6];
        info_of(&self.0, &mut info)?;
        let [kind, _, key, value, entries, flags] = info;
        Ok(Shape { kind, key, value, entries, flags })
    }

    /// Its descriptor.
    pub(crate) fn number(&self) -> u32 {
        self.0.as_raw_fd().cast_unsigned()
    }

    /// Takes the value of a task's first thread out of task storage.
    pub(crate) fn remove_of(&self, process: BorrowedFd<'_>) -> Result<()> {
        let key = process.as_raw_fd();
        let request = Element { map: self.number(), pad: 0, key: (&raw const key) as u64, value: 0, flags: 0 };
        call(DELETE, &request).map(drop)
    }

    /// The value of 8 bytes in this place of an array.
    pub(crate) fn word(&self, place: u32) -> Result<u64> {
        let mut word = 0_u64;
        self.at(place, LOOKUP, &mut word)?;
        Ok(word)
    }

    /// Writes it.
    pub(crate) fn set_word(&self, place: u32, mut word: u64) -> Result<()> {
        self.at(place, UPDATE, &mut word)
    }

    fn at(&self, place: u32, command: libc::c_int, word: &mut u64) -> Result<()> {
        let (key, value) = ((&raw const place) as u64, std::ptr::from_mut(word) as u64);
        call(command, &Element { map: self.number(), pad: 0, key, value, flags: 0 }).map(drop)
    }

    /// Takes the entries of 20 bytes out of a hash with keys of 8 bytes whose last four bytes are `number`. How many.
    pub(crate) fn remove_where_last_is(&self, number: u32) -> Result<u32> {
        let mut removed = 0;
        while let Some((key, _)) = self.where_last_is(number) {
            call(DELETE, &self.element(&key, 0))?;
            removed += 1;
        }
        Ok(removed)
    }

    /// The word before the last of such an entry: in the mirror the number of the last exec that was judged.
    pub(crate) fn word_where_last_is(&self, number: u32) -> Option<u32> {
        self.where_last_is(number).map(|(_, value)| value[3])
    }

    /// Writes it.
    pub(crate) fn set_word_where_last_is(&self, number: u32, word: u32) -> Result<()> {
        let (key, mut value) = self.where_last_is(number).with_context(|| format!("there is no entry of {number}"))?;
        value[3] = word;
        call(UPDATE, &self.element(&key, value.as_ptr() as u64)).map(drop)
    }

    /// The first entry whose last word is that number.
    fn where_last_is(&self, number: u32) -> Option<(u64, [u32; 5])> {
        let mut key = None::<u64>;
        loop {
            let mut next = 0_u64;
            let at = key.as_ref().map_or(0, |key| std::ptr::from_ref(key) as u64);
            let step = Element { map: self.number(), pad: 0, key: at, value: (&raw mut next) as u64, flags: 0 };
            call(GET_NEXT_KEY, &step).ok()?;
            let mut value = [0_u32; 5];
            if call(LOOKUP, &self.element(&next, (&raw mut value) as u64)).is_ok() && value[4] == number {
                return Some((next, value));
            }
            key = Some(next);
        }
    }

    fn element(&self, key: &u64, value: u64) -> Element {
        Element { map: self.number(), pad: 0, key: std::ptr::from_ref(key) as u64, value, flags: 0 }
    }

    /// Whether a task's first thread has a value in task storage of 16 bytes.
    pub(crate) fn has(&self, process: BorrowedFd<'_>) -> bool {
        let (key, mut value) = (process.as_raw_fd(), [0_u8; 16]);
        let request = Element {
            map: self.number(),
            pad: 0,
            key: (&raw const key) as u64,
            value: (&raw mut value) as u64,
            flags: 0,
        };
        call(LOOKUP, &request).is_ok()
    }

    /// Puts in keys of 8 bytes with values of 20 zeros, until there is no room for more. How many.
    pub(crate) fn fill(&self, keys: &[u64]) -> Result<u32> {
        let values = vec![[0_u8; 20]; keys.len()];
        let mut request = self.batch(keys, values.as_ptr() as u64)?;
        // a map that becomes full says so, and how far it came
        let _ = call(UPDATE_BATCH, &mut request);
        Ok(request.count)
    }

    /// Takes those keys out again.
    pub(crate) fn empty(&self, keys: &[u64]) -> Result<()> {
        let mut request = self.batch(keys, 0)?;
        call(DELETE_BATCH, &mut request).map(drop)
    }

    fn batch(&self, keys: &[u64], values: u64) -> Result<Batch> {
        Ok(Batch {
            input: 0,
            output: 0,
            keys: keys.as_ptr() as u64,
            values,
            count: u32::try_from(keys.len())?,
            map: self.number(),
            element_flags: 0,
            flags: 0,
        })
    }
}

/// As `BPF_OBJ_GET_INFO_BY_FD` reads it.
#[repr(C)]
struct GetInfo {
    fd: u32,
    length: u32,
    info: u64,
}

/// `struct bpf_link_info`, its start.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
}

/// `struct bpf_prog_info`: its words of 8 bytes. Those that are read: `run_time_ns` 24, `run_cnt` 25, and the lower half
/// of 27, `verified_insns` (5.16).
const INFO: usize = 28;

/// What the kernel knows of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    pub(crate) run_ns: u64,
    pub(crate) runs: u64,
    pub(crate) verified: u64,
}

/// Makes the kernel count the runs and the time of every program until this is closed (`BPF_STATS_RUN_TIME`).
pub(crate) fn count_time() -> Result<OwnedFd> {
    descriptor(ENABLE_STATS, &0_u32)
}

/// The program that a pinned link holds.
pub(crate) fn program_of(pin: &Path) -> Result<OwnedFd> {
    let mut info = LinkInfo::default();
    info_of(&pinned(pin)?, &mut info)?;
    // the structure begins with the number
    descriptor(PROG_GET_FD_BY_ID, &[info.program, 0, 0])
}

/// What a pin holds, what its link holds, and the kernel's own type information: a descriptor of each kind that bpf(2) gives,
/// named as the kernel names it.
pub(crate) fn of_each_kind(s: &Sandbox) -> Result<Vec<(&'static str, OwnedFd)>> {
    let link = find(s.pins(), "link_exec").context("no link is pinned")?;
    // the first that there is, by its number
    let mut first = [0_u32; 3];
    call(BTF_GET_NEXT_ID, &mut first)?;
    Ok(vec![
        ("bpf-map", Map::of(s, "SESSION_STATE")?.0),
        ("bpf-prog", program_of(&link)?),
        ("bpf_link", pinned(&link)?),
        ("bpf-stats", count_time()?),
        ("btf", descriptor(BTF_GET_FD_BY_ID, &[first[1], 0, 0])?),
    ])
}

/// What the kernel counted for a program.
pub(crate) fn stats(program: &OwnedFd) -> Result<Stats> {
    let mut info = [0_u64; INFO];
    info_of(program, &mut info)?;
    Ok(Stats { run_ns: info[24], runs: info[25], verified: info[27] & 0xffff_ffff })
}

/// What was counted for each program that the agent has pinned by its link. Tracing programs run for every task of the
/// host: theirs is the mean of members and of others.
pub(crate) fn stats_of(pins: &Path) -> Result<BTreeMap<String, Stats>> {
    let mut found = BTreeMap::new();
    for load in loads(pins)? {
        for pin in fs::read_dir(&load)?.flatten() {
            let file = pin.file_name().to_string_lossy().into_owned();
            // an iterator's link runs nothing by itself; the clock's program is one, with a link for each processor
            let skipped = |name: &str| name == "members" || (name.starts_with("clock") && name != "clock0");
            let Some(name) = file.strip_prefix("link_").filter(|name| !skipped(name)) else { continue };
            let program = program_of(&pin.path()).with_context(|| file.clone())?;
            found.insert(name.to_owned(), stats(&program)?);
        }
    }
    ensure!(!found.is_empty(), "the agent has pinned no program below {}", pins.display());
    Ok(found)
}

/// The folders of the loads that are in force, in those of their layouts.
fn loads(pins: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for layout in fs::read_dir(pins).with_context(|| pins.display().to_string())? {
        let inside = fs::read_dir(layout?.path())?.flatten().map(|load| load.path());
        found.extend(inside.filter(|load| load.is_dir()));
    }
    Ok(found)
}

/// `T` is integers only, so that whatever the kernel writes is one.
fn info_of<T>(fd: &OwnedFd, info: &mut T) -> Result<()> {
    let request = GetInfo {
        fd: fd.as_raw_fd().cast_unsigned(),
        length: u32::try_from(size_of::<T>())?,
        info: std::ptr::from_mut(info) as u64,
    };
    call(OBJ_GET_INFO_BY_FD, &request).map(drop)
}

/// What is pinned there.
fn pinned(path: &Path) -> Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    descriptor(OBJ_GET, &ObjGet { path: path.as_ptr() as u64, descriptor: 0, flags: 0 })
}

/// A command whose result is a descriptor.
fn descriptor<T>(command: libc::c_int, attributes: &T) -> Result<OwnedFd> {
    let fd = libc::c_int::try_from(call(command, attributes)?)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The first file of that name.
pub(crate) fn find(below: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(below).ok()?.flatten().map(|entry| entry.path());
    entries.into_iter().find_map(|path| {
        if path.is_dir() {
            return find(&path, name);
        }
        (path.file_name()?.to_str()? == name).then_some(path)
    })
}

/// `T` is what the command reads and writes; what it points to lives as long as the call.
fn call<T>(command: libc::c_int, attributes: T) -> Result<i64>
where
    T: Attributes,
{
    let (at, size) = attributes.place();
    // SAFETY: the kernel reads and writes at most `size` bytes of integers, and what they point to.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, at, size) };
    ensure!(done >= 0, "bpf({command}): {}", std::io::Error::last_os_error());
    Ok(done)
}

/// A structure that a command takes.
trait Attributes {
    fn place(self) -> (u64, usize);
}

impl<T> Attributes for &T {
    fn place(self) -> (u64, usize) {
        (std::ptr::from_ref(self) as u64, size_of::<T>())
    }
}

impl<T> Attributes for &mut T {
    fn place(self) -> (u64, usize) {
        (std::ptr::from_mut(self) as u64, size_of::<T>())
    }
}

/// A descriptor of a process.
pub(crate) fn pidfd(pid: u32) -> Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    ensure!(fd >= 0, "process {pid}: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
}
