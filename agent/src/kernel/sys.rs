//! The few system calls that neither aya nor nix has: those on maps and pins, and on who still uses them.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
};

use aya::{Pod, maps::IterableMap};
use tipstaff_common::{label::Label, socket::SocketLabel};

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
/// A flag of an update: only where nothing is yet.
const BPF_NOEXIST: u64 = 1;
/// Since 5.6.
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// Since 5.6; for tries since 5.13.
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
/// The kernel's own errno for an operation that a type of map does not have (`include/linux/errno.h`).
const ENOTSUPP: i32 = 524;
const BPF_OBJ_PIN: libc::c_long = 6;
/// `MEMBARRIER_CMD_GLOBAL` (`include/uapi/linux/membarrier.h`)
const MEMBARRIER_GLOBAL: libc::c_long = 1;

/// `union bpf_attr` for operations on one element (`include/uapi/linux/bpf.h`, 6.18).
#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// One element operation on task storage, whose key from user space is a pidfd.
fn element(command: libc::c_long, map: BorrowedFd<'_>, task: BorrowedFd<'_>, label: &mut Label) -> io::Result<()> {
    let key = task.as_raw_fd();
    let attribute = Element {
        map: map.as_raw_fd().cast_unsigned(),
        pad: 0,
        key: (&raw const key) as u64,
        value: (&raw mut *label) as u64,
        flags: 0,
    };
    // SAFETY: the attribute and what it points to live through the call; the kernel reads four bytes of key and reads or
    // writes one `Label`, which is the map's value size.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attribute, size_of::<Element>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The label of the process's main thread; `None` where it has none.
pub fn label_of(map: BorrowedFd<'_>, task: BorrowedFd<'_>) -> io::Result<Option<Label>> {
    let mut label = Label::default();
    match element(BPF_MAP_LOOKUP_ELEM, map, task, &mut label) {
        Ok(()) => Ok(Some(label)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Labels the process's main thread.
pub fn set_label(map: BorrowedFd<'_>, task: BorrowedFd<'_>, mut label: Label) -> io::Result<()> {
    element(BPF_MAP_UPDATE_ELEM, map, task, &mut label)
}

/// Labels the socket that a descriptor of this process leads to. `EEXIST`: it has a label.
pub fn set_socket_label(map: BorrowedFd<'_>, socket: BorrowedFd<'_>, label: SocketLabel) -> io::Result<()> {
    let key = socket.as_raw_fd();
    let attribute = Element {
        map: map.as_raw_fd().cast_unsigned(),
        pad: 0,
        key: (&raw const key) as u64,
        value: (&raw const label) as u64,
        flags: BPF_NOEXIST,
    };
    // SAFETY: the attribute and what it points to live through the call; the kernel reads four bytes of key and one
    // `SocketLabel`, which is the map's value size.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_ELEM, &raw const attribute, size_of::<Element>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The label of the socket that a descriptor of this process leads to; `None` where it has none.
pub fn socket_label(map: BorrowedFd<'_>, socket: BorrowedFd<'_>) -> io::Result<Option<SocketLabel>> {
    let (key, mut label) = (socket.as_raw_fd(), SocketLabel::default());
    let attribute = Element {
        map: map.as_raw_fd().cast_unsigned(),
        pad: 0,
        key: (&raw const key) as u64,
        value: (&raw mut label) as u64,
        flags: 0,
    };
    // SAFETY: the attribute and what it points to live through the call; the kernel reads four bytes of key and writes one
    // `SocketLabel`, which is the map's value size.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_ELEM, &raw const attribute, size_of::<Element>()) };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(Some(label)),
        error if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        error => Err(error),
    }
}

/// Takes the label off the process's main thread; one that has none is left as it is.
pub fn remove_label(map: BorrowedFd<'_>, task: BorrowedFd<'_>) -> io::Result<()> {
    match element(BPF_MAP_DELETE_ELEM, map, task, &mut Label::default()) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// `union bpf_attr` for operations on many elements (as [`Element`]).
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: *const libc::c_void,
    values: *const libc::c_void,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Writes many elements in one call. False: this kernel has no such call for this type of map, and nothing was written.
///
/// # Errors
/// An element could not be written; those before it were.
///
/// # Panics
/// There are not as many values as keys.
pub fn update_batch<K: Pod, V: Pod>(map: &impl IterableMap<K, V>, keys: &[K], values: &[V]) -> io::Result<bool> {
    assert_eq!(keys.len(), values.len(), "each key has its value");
    let mut attribute = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr().cast(),
        values: values.as_ptr().cast(),
        count: u32::try_from(keys.len()).map_err(io::Error::other)?,
        map: map.map().fd().as_fd().as_raw_fd().cast_unsigned(),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the attribute, the keys and the values live through the call; the kernel reads `count` of each, and writes
    // how many it took into the attribute. The map's handle was made for keys and values of these sizes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_BATCH, &raw mut attribute, size_of::<Batch>()) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL | ENOTSUPP) => Ok(false),
        _ => Err(error),
    }
}

/// A value that is `wanted` of a hash with keys of 8 bytes. One that is there all the time is seen, whatever is put in and taken
/// out meanwhile: the kernel copies bucket by bucket.
///
/// # Errors
/// The map cannot be read, or not to its end.
pub fn find_value<V: Pod + Default>(map: BorrowedFd<'_>, wanted: impl Fn(&V) -> bool) -> io::Result<Option<V>> {
    const AT_ONCE: usize = 1024;
    let (mut keys, mut values) = (vec![0_u64; AT_ONCE], vec![V::default(); AT_ONCE]);
    let mut place = None::<u32>;
    loop {
        let mut next = 0_u32;
        let mut attribute = Batch {
            in_batch: place.as_ref().map_or(0, |place| std::ptr::from_ref(place) as u64),
            out_batch: (&raw mut next) as u64,
            keys: keys.as_mut_ptr().cast(),
            values: values.as_mut_ptr().cast(),
            count: AT_ONCE as u32,
            map: map.as_raw_fd().cast_unsigned(),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the attribute and what it points to live through the call; the kernel writes at most `count` keys of 8
        // bytes and values of the map's size, which is that of `V`, and how many these were into the attribute.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attribute, size_of::<Batch>()) };
        let error = (result != 0).then(io::Error::last_os_error);
        // the last part comes with this
        let last = error.as_ref().is_some_and(|error| error.raw_os_error() == Some(libc::ENOENT));
        if let (Some(error), false) = (error, last) {
            return Err(error);
        }
        let found = values.iter().take(attribute.count as usize).find(|value| wanted(value));
        if found.is_some() || last {
            return Ok(found.copied());
        }
        place = Some(next);
    }
}

/// Returns when every program that ran on any CPU has ended: what it looked up may go (`synchronize_rcu` in
/// `kernel/sched/membarrier.c`, 6.18).
///
/// # Errors
/// This kernel does not have it, or not with its `nohz_full`.
pub fn wait_for_programs() -> io::Result<()> {
    // SAFETY: no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_GLOBAL, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An array map (`BPF_F_MMAPABLE`) in this process's memory, of which single words can be changed in one step.
#[derive(Debug)]
pub struct MappedArray {
    start: NonNull<u8>,
    stride: usize,
    entries: usize,
    length: usize,
}

impl MappedArray {
    /// Maps an array of `entries` values of `size` bytes.
    ///
    /// # Errors
    /// The map does not have the flag, or not this size.
    pub fn new(map: BorrowedFd<'_>, size: usize, entries: usize) -> io::Result<Self> {
        let stride = size.next_multiple_of(8);
        let length = (stride * entries).next_multiple_of(4096);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice; the kernel refuses more than the map has.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, map.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { start, stride, entries, length })
    }

    /// Changes the word at `offset` bytes into value `index`, in one step. False: there is no such word.
    #[must_use]
    pub fn store(&self, index: usize, offset: usize, value: u32) -> bool {
        if index >= self.entries || offset + size_of::<u32>() > self.stride || !offset.is_multiple_of(4) {
            return false;
        }
        // SAFETY: inside the mapping, which lives as long as `self`, and aligned: the mapping begins on a page and the
        // stride is a multiple of 8. Others change it through the kernel only, which atomics allow for.
        let word = unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(index * self.stride + offset).cast()) };
        word.store(value, Ordering::Release);
        true
    }
}

impl Drop for MappedArray {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody has a reference into it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

// SAFETY: the memory is shared with the kernel and changed by atomics only, from whatever thread.
unsafe impl Send for MappedArray {}

/// Pins what a descriptor leads to.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attribute = [path.as_ptr() as u64, u64::from(object.as_raw_fd().cast_unsigned())];
    // SAFETY: the attribute and the path live through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_PIN, &raw const attribute, size_of_val(&attribute)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What a system call that makes a descriptor answered.
pub(super) fn new_descriptor(answer: libc::c_long) -> io::Result<OwnedFd> {
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = i32::try_from(answer).map_err(io::Error::other)?;
    // SAFETY: the kernel just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    use aya::maps::{Array, HashMap, LpmTrie, MapData, MapError, lpm_trie::Key};

    use super::*;

    /// `None` where this user may not make maps.
    fn made<M>(map: Result<M, MapError>) -> Option<M> {
        match map {
            Ok(map) => Some(map),
            Err(MapError::CreateError { .. }) if !nix::unistd::geteuid().is_root() => None,
            Err(error) => panic!("no map: {error}"),
        }
    }

    #[test]
    fn a_batch_is_in_the_map() {
        let Some(hash) = made(HashMap::<MapData, u32, u64>::create(3, 0)) else { return };
        let written = update_batch(&hash, &[1u32, 2, 3], &[10u64, 20, 30]).expect("a batch");
        assert!(written, "hashes take batches since 5.6");
        assert_eq!([1, 2, 3].map(|key| hash.get(&key, 0).ok()), [Some(10), Some(20), Some(30)]);
        // one too many: an error, not a silent part
        assert!(update_batch(&hash, &[4u32], &[40u64]).is_err());
        let Some(trie) = made(LpmTrie::<MapData, [u8; 4], u64>::create(2, 1)) else { return };
        let keys = [Key::new(8, [10, 0, 0, 0]), Key::new(16, [10, 1, 0, 0])];
        if update_batch(&trie, &keys, &[8u64, 16]).expect("a batch") {
            assert_eq!(trie.get(&Key::new(32, [10, 1, 2, 3]), 0).ok(), Some(16));
            assert_eq!(trie.get(&Key::new(32, [10, 2, 2, 3]), 0).ok(), Some(8));
        }
    }

    #[test]
    fn a_value_is_found_wherever_it_is() {
        const ALL: u64 = 3000;
        let Some(mut hash) = made(HashMap::<MapData, u64, u64>::create(4096, 0)) else { return };
        let find = |hash: &HashMap<MapData, u64, u64>, what| find_value(hash.map().fd().as_fd(), |v: &u64| *v == what);
        assert_eq!(find(&hash, 1).expect("an empty map"), None);
        for key in 1..=ALL {
            hash.insert(key << 6, key, 0).expect("an entry");
        }
        for value in [1, 1024, 1025, ALL] {
            assert_eq!(find(&hash, value).expect("a full map"), Some(value));
        }
        for value in [0, ALL + 1] {
            assert_eq!(find(&hash, value).expect("a full map"), None);
        }
    }

    #[test]
    fn a_word_of_an_array_changes_alone() {
        let Some(mut array) = made(Array::<MapData, [u32; 5]>::create(4, 1 << 10)) else { return };
        array.set(2, [1, 2, 3, 4, 5], 0).expect("a value");
        let mapped = MappedArray::new(array.map().fd().as_fd(), 20, 4).expect("a mapping");
        assert!(mapped.store(2, 8, 33));
        assert_eq!(array.get(&2, 0).ok(), Some([1, 2, 33, 4, 5]));
        assert_eq!(array.get(&1, 0).ok(), Some([0; 5]));
        assert!(!mapped.store(4, 0, 1) && !mapped.store(0, 24, 1) && !mapped.store(0, 2, 1));
        let Some(plain) = made(Array::<MapData, u64>::create(4, 0)) else { return };
        assert!(MappedArray::new(plain.map().fd().as_fd(), 8, 4).is_err());
    }
}
