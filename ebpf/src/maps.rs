//! Every map, with who writes it and how long an entry lives. Pinned by the agent under a name that carries the layout.

use core::ffi::c_void;

use aya_ebpf::{
    btf_maps::{Array, HashMap, HashOfMaps, LpmTrie, PerCpuArray, RingBuf},
    helpers::{bpf_sk_storage_get, bpf_task_storage_delete, bpf_task_storage_get},
    macros::btf_map,
};
use tipstaff_common::{
    event::KINDS,
    fingerprint::{Answer, SECRETS},
    label::{Label, Mirrored, SessionRef},
    limits,
    offsets::Offsets,
    privilege,
    rule::{ExecKey, FileId, NetEntry, PortList, ProgramEntry, UnixKey},
    session::{HostRoot, PolicyEntry, SessionConfig, SessionCounters, Settings},
    socket::{Destination, SocketLabel},
};

/// Constants of this load. The agent replaces them in read-only data before the programs are verified.
#[unsafe(no_mangle)]
pub static SETTINGS: Settings = Settings {
    confine_cgroup: 0,
    session_level: 0,
    agent: 0,
    generation: 0,
    pad: 0,
    secrets: [0; SECRETS],
    sessions_cgroup: 0,
};

/// Where the agent's paths begin; as `SETTINGS`.
#[unsafe(no_mangle)]
pub static ROOT: HostRoot = HostRoot { inode: 0, mount: 0, pad: 0 };

/// Where this kernel keeps what the programs read; as `SETTINGS`.
#[unsafe(no_mangle)]
pub static OFFSETS: Offsets = Offsets {
    binprm_file: 0,
    binprm_filename: 0,
    binprm_buffer: 0,
    file_inode: 0,
    file_dentry: 0,
    dentry_parent: 0,
    dentry_inode: 0,
    inode_number: 0,
    inode_generation: 0,
    inode_super: 0,
    super_device: 0,
    task_tgid: 0,
    task_pid: 0,
    task_leader: 0,
    task_parent: 0,
    task_mm: 0,
    task_exit_code: 0,
    task_exit_state: 0,
    task_exec_id: 0,
    task_cgroups: 0,
    css_set_default: 0,
    mm_arg_start: 0,
    mm_arg_end: 0,
    cgroup_node: 0,
    cgroup_level: 0,
    cgroup_ancestors: 0,
    cgroup_root: 0,
    root_hierarchy: 0,
    node_id: 0,
    socket_sock: 0,
    sock_kernel_bit: 0,
    sock_flags: 0,
    sock_storage_bit: 0,
    sock_type: 0,
    sock_protocol: 0,
    sock_cgroup: 0,
    sock_family: 0,
    sock_state: 0,
    sock_local_port: 0,
    sock_remote_port: 0,
    sock_local4: 0,
    sock_remote4: 0,
    sock_local6: 0,
    sock_remote6: 0,
    sock_namespace: 0,
    namespace_number: 0,
    message_name: 0,
    message_name_length: 0,
    unix_address: 0,
    unix_dentry: 0,
    unix_address_length: 0,
    unix_address_name: 0,
    dentry_name: 0,
    dentry_name_length: 0,
    inode_mode: 0,
    inode_size: 0,
    inode_links: 0,
    inode_owner: 0,
    inode_writers: 0,
    inode_changed: 0,
    inode_changed_nanos: 0,
    super_flags: 0,
    binprm_descriptor: 0,
    task_fs: 0,
    task_credentials: 0,
    credentials_users: 0,
    users_level: 0,
    fs_root_mount: 0,
    fs_root_dentry: 0,
    mount_inner: 0,
    mount_id: 0,
    asked_address: 0,
    asked_socket: 0,
    asked_length: 0,
    binprm_credentials: 0,
    task_real_credentials: 0,
    credentials_user: 0,
    credentials_group: 0,
    credentials_permitted: 0,
    string_name: 0,
    reading_module: 0,
    reading_kexec: 0,
    loading_module: 0,
    loading_kexec: 0,
    file_mode: 0,
    mount_root: 0,
    setattr_says_ids: 0,
    inode_device: 0,
    super_magic: 0,
    mm_program: 0,
    path_dentry: 0,
    task_number: 0,
    pid_level: 0,
    pid_numbers: 0,
    sock_cookie: 0,
    sock_storage: 0,
    storage_list: 0,
    element_node: 0,
    element_map: 0,
    element_value: 0,
};

/// A task-local storage map, which aya-ebpf 0.2 has no type for. Laid out as its BTF maps are: the loader reads the
/// definition from the fields' types, the pointers are never followed.
#[repr(C)]
pub struct TaskStorage<T> {
    r#type: *const [i32; 29],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; 1],
}

// SAFETY: the pointers are null for ever; only the address of the static is used.
unsafe impl<T> Sync for TaskStorage<T> {}

impl<T> TaskStorage<T> {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// The task's value, or null: none there, or (with `create`) no room, or the kernel's recursion guard refused.
    #[inline(always)]
    pub fn get(&self, task: *mut c_void, create: bool) -> *mut T {
        // SAFETY: the helper takes the map's address and a task that the verifier knows as trusted; it checks both.
        unsafe {
            bpf_task_storage_get(
                core::ptr::from_ref(self).cast_mut().cast(),
                task.cast(),
                core::ptr::null_mut(),
                u64::from(create),
            )
            .cast()
        }
    }
}

impl<T> TaskStorage<T> {
    /// Takes the task's value away.
    #[inline(always)]
    pub fn remove(&self, task: *mut c_void) {
        // SAFETY: as in `get`. One that is not there is as good as removed.
        let _ = unsafe { bpf_task_storage_delete(core::ptr::from_ref(self).cast_mut().cast(), task.cast()) };
    }
}

/// A socket-local storage map whose values are copied to the sockets that a listener accepts. aya-ebpf's own has neither
/// that flag nor other contexts than `SockAddrContext`. Laid out as [`TaskStorage`].
#[repr(C)]
pub struct SocketStorage<T> {
    r#type: *const [i32; 24],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    /// `BPF_F_NO_PREALLOC | BPF_F_CLONE`
    map_flags: *const [i32; 0x201],
}

// SAFETY: as for `TaskStorage`.
unsafe impl<T> Sync for SocketStorage<T> {}

impl<T> SocketStorage<T> {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// The socket's value, or null: none there, or (with `create`) no room.
    #[inline(always)]
    pub fn get(&self, socket: *mut c_void, create: bool) -> *mut T {
        // SAFETY: the helper takes the map's address and a socket that the verifier knows as one; it checks both.
        unsafe {
            bpf_sk_storage_get(
                core::ptr::from_ref(self).cast_mut().cast(),
                socket,
                core::ptr::null_mut(),
                u64::from(create),
            )
            .cast()
        }
    }
}

/// Socket → label. Written by the programs where the socket is made or first used; lives as long as the socket.
#[btf_map]
pub static SOCKET_LABELS: SocketStorage<SocketLabel> = SocketStorage::new();

/// Task → label. Written at birth (copied from the parent), on first sight, and by the agent through a pidfd. Lives as
/// long as the task.
#[btf_map]
pub static TASK_LABELS: TaskStorage<Label> = TaskStorage::new();

/// Task address → label, for hooks that may not read task storage (cgroup programs on 6.1 and 6.12). Preallocated.
/// Written with the label, deleted at the task's exit.
#[btf_map]
pub static MIRROR: HashMap<u64, Mirrored, { limits::MIRROR as usize }> = HashMap::new();

/// Id of a session's cgroup → session. Written by the agent; lives as long as the session.
#[btf_map]
pub static CGROUP_SESSIONS: HashMap<u64, SessionRef, { limits::SESSIONS as usize }> = HashMap::new();

/// Generation and state of a slot (`session::state_word`). Written by the agent.
#[btf_map]
pub static SESSION_STATE: Array<u64, { limits::SESSIONS as usize }> = Array::new();

/// `BPF_F_MMAPABLE` (5.5): the agent maps the array into its memory, so that one word of it changes in one step.
const MMAPABLE: usize = 1 << 10;

/// What a session is held to. Written by the agent before the state becomes active; `policy` is one word of its own that
/// changes afterwards, when the session is narrowed.
#[btf_map]
pub static SESSION_CONFIG: Array<SessionConfig, { limits::SESSIONS as usize }, MMAPABLE> = Array::new();

/// What a session did. Written by the programs; the agent clears it while the slot is free.
#[btf_map]
pub static SESSION_COUNTERS: Array<SessionCounters, { limits::SESSIONS as usize }> = Array::new();

/// Policy → revision in force. Written by the agent.
#[btf_map]
pub static POLICIES: Array<PolicyEntry, { limits::POLICIES as usize }> = Array::new();

/// Rules on programs, one inner map a revision. The value is a `ProgramEntry`, declared as an array: 6.1 compares what
/// the BTF says of a structure (`timer_off`: -ENOENT) with what it says of a map without BTF (-EINVAL), and refuses the
/// agent's inner maps, which have none. For integers and arrays both are -EINVAL (`kernel/bpf/btf.c`, 6.1; measured).
pub type ExecRules = HashMap<ExecKey, [u64; size_of::<ProgramEntry>() / 8], 1024>;
const _: () = assert!(size_of::<ProgramEntry>().is_multiple_of(8));

/// Revision → rules on programs. Written by the agent before the revision is put in force; lives as long as a session
/// uses it.
#[btf_map]
pub static EXEC_RULES: HashOfMaps<u32, ExecRules, { limits::POLICIES as usize }> = HashOfMaps::new();

/// Rules on addresses, one inner trie a revision. The value is a `NetEntry`; see [`ExecRules`] for why it is an array.
pub type NetRules = LpmTrie<[u8; 16], [u64; size_of::<NetEntry>() / 8], 1024>;
const _: () = assert!(size_of::<NetEntry>().is_multiple_of(8));

/// Revision → rules on addresses. As `EXEC_RULES`.
#[btf_map]
pub static NET_RULES: HashOfMaps<u32, NetRules, { limits::POLICIES as usize }> = HashOfMaps::new();

/// Revision → rules on local addresses that may be listened on. As `EXEC_RULES`.
#[btf_map]
pub static LISTEN_RULES: HashOfMaps<u32, NetRules, { limits::POLICIES as usize }> = HashOfMaps::new();

/// Revision → rules on who may come in. As `EXEC_RULES`.
#[btf_map]
pub static INBOUND_RULES: HashOfMaps<u32, NetRules, { limits::POLICIES as usize }> = HashOfMaps::new();

/// The port rules of entries that have no room for them, one inner map a revision, by numbers from 0. The value is a `PortList`;
/// see [`ExecRules`].
pub type PortLists = HashMap<u32, [u64; size_of::<PortList>() / 8], 1024>;

/// Revision → lists of port rules. As `EXEC_RULES`.
#[btf_map]
pub static PORT_LISTS: HashOfMaps<u32, PortLists, { limits::POLICIES as usize }> = HashOfMaps::new();

/// Rules on unix sockets, one inner map a revision. The value is an `ExecEntry`; see [`ExecRules`].
pub type UnixRules = HashMap<UnixKey, u64, 1024>;

/// Revision → rules on unix sockets. As `EXEC_RULES`.
#[btf_map]
pub static UNIX_RULES: HashOfMaps<u32, UnixRules, { limits::POLICIES as usize }> = HashOfMaps::new();

/// What the rules said of destinations that were asked about lately, by fingerprint. Written by the programs; an entry is good
/// as long as its load and its revision are.
#[btf_map]
pub static ANSWERS: Array<Answer, { limits::ANSWERS as usize }> = Array::new();

/// Where sessions that have a budget for it have been. Preallocated. Written by the programs; the agent removes what is a
/// session's when it frees the slot.
#[btf_map]
pub static DESTINATIONS: HashMap<Destination, u32, { limits::DESTINATIONS as usize }> = HashMap::new();

/// How far `CLOCK_BOOTTIME` is ahead of the monotonic clock, nanoseconds (index 0). Written by the clock program.
#[btf_map]
pub static CLOCK: Array<u64, 1> = Array::new();

/// Records of denials, kills and moves. Read by the agent.
#[btf_map]
pub static VERDICTS: RingBuf<u64, { limits::VERDICT_RING as usize }> = RingBuf::new();

/// Records of everything else. Read by the agent.
#[btf_map]
pub static ACTIVITY: RingBuf<u64, { limits::ACTIVITY_RING as usize }> = RingBuf::new();

/// Not 0 while the agent looks into the rings by itself, so that no record needs to wake it (index 0). Written by the
/// agent, which clears it before it sleeps.
#[btf_map]
pub static READER_AWAKE: Array<u64, 1> = Array::new();

/// Records that found no room, by kind, for all sessions together.
#[btf_map]
pub static LOST: PerCpuArray<u64, { KINDS }> = PerCpuArray::new();

/// The load that speaks (index 0): `Settings::generation` of the programs that report, count and claim. Written by the
/// agent once all programs of a load are attached. Every attached program decides, whatever stands here.
#[btf_map]
pub static GENERATION: Array<u32, 1> = Array::new();

/// Names of sockets of daemons that start programs for their clients → the agent's number for the place. The longest that
/// fits is found. Written by the agent at its start.
#[btf_map]
pub static DELEGATES: LpmTrie<[u8; limits::UNIX_NAME], u32, { privilege::DELEGATES as usize }> = LpmTrie::new();

/// The agent's folders, those above them, and the roots of the file systems that its pins are in; folders out of which daemons
/// start programs. Written by the agent at its start, the last also when a session starts.
#[btf_map]
pub static PROTECTED: HashMap<FileId, u32, { limits::PROTECTED as usize }> = HashMap::new();

/// Decisions that were not carried out because the task lies outside the confinement (index 0).
#[btf_map]
pub static FOREIGN: Array<u64, 1> = Array::new();
