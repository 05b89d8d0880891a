//! Compiled rules: what `exec` and `net` look up, and the codes of verdicts and reasons.

use crate::{
    limits::{PORT_RULES, PORT_RULES_INLINE, UNIX_NAME},
    pod,
};

/// The operation goes on.
pub const ALLOW: u32 = 0;
/// The operation is refused (`EPERM`), or its packet dropped.
pub const DENY: u32 = 1;
/// The task is killed before its next instruction.
pub const KILL: u32 = 2;
/// The operation would have been refused: the session is in mode `observe`.
pub const WOULD_DENY: u32 = 3;

/// In a record's `rule` field, below this: an index into the policy's list of rules. From here on: a reason that is
/// no rule.
pub const REASONS: u32 = 0xffff_0000;
/// No rule named it: the kind's default decided.
pub const REASON_DEFAULT: u32 = REASONS;
/// The session's deadline has passed.
pub const REASON_EXPIRED: u32 = REASONS + 1;
/// The session has ended.
pub const REASON_ENDED: u32 = REASONS + 2;
/// What was asked for could not be identified.
pub const REASON_UNRESOLVED: u32 = REASONS + 3;
/// The child could not be labelled.
pub const REASON_UNLABELLED: u32 = REASONS + 4;
/// `clone3` was asked to put the child into another cgroup.
pub const REASON_LEAVES: u32 = REASONS + 5;
/// A fault in the decision itself.
pub const REASON_FAULT: u32 = REASONS + 6;
/// The budget of connects is used up.
pub const REASON_BUDGET_CONNECTS: u32 = REASONS + 7;
/// The budget of connects in this second is used up.
pub const REASON_BUDGET_CONNECT_RATE: u32 = REASONS + 8;
/// The budget of distinct destinations is used up.
pub const REASON_BUDGET_DESTINATIONS: u32 = REASONS + 9;
/// The budget of bytes out is used up.
pub const REASON_BUDGET_EGRESS: u32 = REASONS + 10;
/// The budget of bytes out in this second is used up.
pub const REASON_BUDGET_EGRESS_RATE: u32 = REASONS + 11;
/// The policy lets no such socket be made: family, type or protocol (see `socket::SOCKET_*`).
pub const REASON_FAMILY: u32 = REASONS + 12;
/// A metadata service's address, which no rule allows.
pub const REASON_METADATA: u32 = REASONS + 13;
/// A name server that no rule allows.
pub const REASON_DNS: u32 = REASONS + 14;
/// The socket was made outside the session: before it, or by somebody else; or by a member that had been moved away.
pub const REASON_CROSSED: u32 = REASONS + 15;
/// A socket option that would make packets take another way than the address that was judged.
pub const REASON_OPTION: u32 = REASONS + 16;
/// It takes a privilege of a class that the policy does not allow (see `privilege::PRIVILEGE_*`).
pub const REASON_PRIVILEGE: u32 = REASONS + 17;
/// It would reach the agent, what it holds or what holds its sessions: no policy allows that.
pub const REASON_PROTECTED: u32 = REASONS + 18;
/// A daemon on this host that starts programs for whoever logs in: class `PRIVILEGE_DELEGATION`, where it is an address.
pub const REASON_DELEGATION: u32 = REASONS + 19;
/// Who asks runs a program whose start was not seen, and which the rules are against.
pub const REASON_UNSEEN: u32 = REASONS + 20;
/// A look at a process of another session: its environment, its memory's map, its open files.
pub const REASON_LOOK: u32 = REASONS + 21;
/// The socket is of a class that the scope, which was narrowed since it was made, does not have any more.
pub const REASON_NARROWED: u32 = REASONS + 22;

/// Reasons that are none of the member's doing: its time or its budget is up, nobody could tell what it asked for or what it
/// runs, the socket is one that it was given, it looked at every process that is there, or its scope
/// was narrowed.
const NOT_ITS_DOING: [u32; 17] = [
    REASON_EXPIRED,
    REASON_ENDED,
    REASON_UNRESOLVED,
    REASON_UNLABELLED,
    REASON_LEAVES,
    REASON_FAULT,
    REASON_BUDGET_CONNECTS,
    REASON_BUDGET_CONNECT_RATE,
    REASON_BUDGET_DESTINATIONS,
    REASON_BUDGET_EGRESS,
    REASON_BUDGET_EGRESS_RATE,
    REASON_CROSSED,
    REASON_UNSEEN,
    REASON_LOOK,
    REASON_NARROWED,
    REASON_CHANGED,
    REASON_IDENTITY,
];

/// Whether a refusal with this rule or reason is a violation of the policy: a rule was against it, or none was for it.
/// That a child was to be born in another cgroup is none, because it is refused also where that is the session's own.
#[must_use]
pub const fn is_violation(rule: u32) -> bool {
    if rule < REASONS {
        return true;
    }
    let mut mask = 0_u64;
    let mut index = 0;
    while index < NOT_ITS_DOING.len() {
        mask |= 1 << (NOT_ITS_DOING[index] - REASONS);
        index += 1;
    }
    let reason = rule - REASONS;
    reason >= u64::BITS || mask >> reason & 1 == 0
}

/// The file is not as it was when the rule's file was looked at (see [`PINNED`]).
pub const REASON_CHANGED: u32 = REASONS + 0x20;
/// The file does not have the digest that its rule asks for.
pub const REASON_DIGEST: u32 = REASONS + 0x21;
/// Its rule asks for a digest, and its file system does not tell whether the file is still the one that was looked at.
pub const REASON_IDENTITY: u32 = REASONS + 0x22;
/// From here on, in the order of `CLASS_*`: the program is of a class that the session's kind denies.
pub const REASON_CLASSES: u32 = REASONS + 0x28;

/// A dynamic loader, started as a program: it runs any file that it is given.
pub const CLASS_LOADER: u32 = 0;
/// A program that is many, by the name that it is called by.
pub const CLASS_MULTI_CALL: u32 = 1;
/// The program was named by a descriptor alone: execveat(2) with an empty path.
pub const CLASS_BY_DESCRIPTOR: u32 = 2;
/// The file never had a name: memfd_create(2).
pub const CLASS_MEMFD: u32 = 3;
/// The file has no name any more, or never had one (`O_TMPFILE`).
pub const CLASS_DELETED: u32 = 4;
/// The file was written, renamed or linked since the session began, and members could have done it.
pub const CLASS_WRITTEN: u32 = 5;
/// How many classes there are.
pub const CLASSES: u32 = 6;

/// The key is a program.
pub const KIND_FILE: u32 = 0;
/// The key is a directory: the rule holds for every program below it.
pub const KIND_DIRECTORY: u32 = 1;
/// The key is a class of programs: `CLASS_*` in the place of the inode's number.
pub const KIND_CLASS: u32 = 2;
/// The key is the first argument of a program: its bytes in the place of the file (see [`word_key`]), `words` of the
/// program's entry in the place of `pad`.
pub const KIND_WORD: u32 = 3;
/// The key is a place: the names that lead to a program (see `place::place_key`).
pub const KIND_PLACE: u32 = 4;
/// The key is the place of a directory: the rule holds for every program below it.
pub const KIND_PLACE_DIRECTORY: u32 = 5;
/// Bytes of a first argument that rules can name.
pub const WORD_BYTES: usize = 16;

/// Which file it is, as the kernel sees it: never what stat(2) says (they differ on overlayfs and btrfs).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// `inode.i_ino`
    pub inode: u64,
    /// `super_block.s_dev`
    pub device: u32,
    /// `inode.i_generation`
    pub generation: u32,
}
const _: () = assert!(size_of::<FileId>() == 16);

/// What the hook can see of a file's content: it moves with every write that the kernel knows of.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Content {
    /// `inode.i_size`
    pub size: u64,
    /// The ctime in nanoseconds of the epoch.
    pub changed: u64,
}
const _: () = assert!(size_of::<Content>() == 16);

/// Key of an inner map of `EXEC_RULES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecKey {
    /// The program or directory.
    pub file: FileId,
    /// `KIND_*`
    pub kind: u32,
    /// Always 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<ExecKey>() == 24);

/// The key of a first argument, zeros after its end. `words` is that of the program's entry.
#[must_use]
pub const fn word_key(word: [u8; WORD_BYTES], words: u32) -> ExecKey {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = word;
    let file = FileId {
        inode: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        device: u32::from_ne_bytes([i, j, k, l]),
        generation: u32::from_ne_bytes([m, n, o, p]),
    };
    ExecKey { file, kind: KIND_WORD, pad: words }
}

/// The bytes of a first argument that a key has; see [`word_key`].
#[must_use]
pub const fn word_of(key: &ExecKey) -> [u8; WORD_BYTES] {
    let [a, b, c, d, e, f, g, h] = key.file.inode.to_ne_bytes();
    let [i, j, k, l] = key.file.device.to_ne_bytes();
    let [m, n, o, p] = key.file.generation.to_ne_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// The key of a class of programs.
#[must_use]
pub const fn class_key(class: u32) -> ExecKey {
    ExecKey { file: FileId { inode: class as u64, device: 0, generation: 0 }, kind: KIND_CLASS, pad: 0 }
}

/// The entry holds only while the file's size and ctime are those in it. Where they are not, it says nothing (or, with
/// [`STRICT`], denies). A write, a rename, a link and an unlink all move the ctime.
pub const PINNED: u32 = 1 << 8;
/// Pinned, and denied where the pin does not hold or somebody has the file open to write: its rule asks for a digest, or
/// denies some of its first arguments.
pub const STRICT: u32 = 1 << 9;
/// The first argument is judged, once the program is in place.
pub const WORDS: u32 = 1 << 10;
/// Of any other first argument the entry says nothing.
pub const WORDS_ONLY: u32 = 1 << 11;
/// The entry is no rule: it only says of which classes the file is.
pub const NO_RULE: u32 = 1 << 12;
/// Of a place: a file is denied there unless it was looked at and is held to what it was then ([`STRICT`]).
pub const KNOWN_ONLY: u32 = 1 << 13;

/// Value of an inner map of `EXEC_RULES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramEntry {
    /// `ALLOW` or `DENY`.
    pub verdict: u32,
    /// Index of the rule, or `REASON_*`.
    pub rule: u32,
    /// Bit `1 << CLASS_*` for each class of the file that is known beforehand; `PINNED` and its kin.
    pub flags: u32,
    /// `pad` of the keys of this program's first arguments; 0 is nobody's.
    pub words: u32,
    /// Pinned: what the file was when the agent looked at it.
    pub content: Content,
    /// `Place::names` of where it stood then, if it has no other name: allowed by its own rules it is there only. 0: wherever
    /// it stands.
    pub place: u64,
}
const _: () = assert!(size_of::<ProgramEntry>() == 40);

/// Value of an inner map of `UNIX_RULES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecEntry {
    /// `ALLOW` or `DENY`.
    pub verdict: u32,
    /// Index of the rule.
    pub rule: u32,
}
const _: () = assert!(size_of::<ExecEntry>() == 8);

/// The key is a socket file: `file` is its inode, no name.
pub const UNIX_FILE: u32 = 0;
/// The key is a place: `file` is the directory, the name is that of the entry in it. Holds for a socket that is made there
/// later, too.
pub const UNIX_PLACE: u32 = 1;
/// The key is a directory: `file` is its inode, no name; the rule holds for every socket below it.
pub const UNIX_DIRECTORY: u32 = 2;
/// The key is an abstract name, without its leading 0 byte; `file` is all zero.
pub const UNIX_ABSTRACT: u32 = 3;
/// The key is a path as a program may spell it, in the name; `file` is all zero. Only for programs that see no more of a
/// socket than that. A rule that allows has one only where nobody but root can change which file the path leads to.
pub const UNIX_SPELLED: u32 = 4;

/// In [`PortRule::rule`], from here on: a reason that is no rule, `REASONS` plus what is above this.
pub const PORT_REASONS: u16 = 0xff00;

/// Key of an inner map of `UNIX_RULES`. The value is an [`ExecEntry`]. A socket has several keys: each is looked up, and a
/// denial under any of them beats what another allows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixKey {
    /// See `kind`.
    pub file: FileId,
    /// `UNIX_*`
    pub kind: u32,
    /// Bytes of `name` in use.
    pub length: u32,
    /// The name; beyond `length` all zero.
    pub name: [u8; UNIX_NAME],
}
const _: () = assert!(size_of::<UnixKey>() == 16 + 8 + UNIX_NAME);

/// One port rule of a [`NetEntry`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortRule {
    /// First port, host order.
    pub low: u16,
    /// Last port, inclusive.
    pub high: u16,
    /// `IPPROTO_*`, or 0 for any protocol.
    pub protocol: u8,
    /// `ALLOW` or `DENY`.
    pub verdict: u8,
    /// Index of the rule, or a reason (see [`PORT_REASONS`]).
    pub rule: u16,
}
const _: () = assert!(size_of::<PortRule>() == 8);

/// Value of an inner trie of `NET_RULES`, `LISTEN_RULES` and `INBOUND_RULES`: the rules of this prefix and of every prefix that covers it, denials first,
/// so that the longest match alone decides and the first port rule that fits is the verdict.
///
/// Keys are 128-bit addresses in network order; IPv4 is `::ffff:a.b.c.d`. A rule for IPv6 never covers mapped IPv4.
///
/// `NET_RULES`: the peer's address and port. `LISTEN_RULES`: the local address and port of a bind or listen.
/// `INBOUND_RULES`: the peer's address and the *local* port that it came to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetEntry {
    /// Rules in use, at most `PORT_RULES`.
    pub count: u32,
    /// Where more than `PORT_RULES_INLINE` are in use: the key of the list of them all. Else 0.
    pub list: u32,
    /// The rules where they have room here; beyond `count`, and where there is a list, all zero.
    pub ports: [PortRule; PORT_RULES_INLINE],
}
const _: () = assert!(size_of::<NetEntry>() == 8 + 8 * PORT_RULES_INLINE);

/// Value of an inner map of `PORT_LISTS`: the rules of one entry that has no room for them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortList {
    /// The rules; beyond the entry's `count` all zero.
    pub ports: [PortRule; PORT_RULES],
}
const _: () = assert!(size_of::<PortList>() == 8 * PORT_RULES);

pod!(FileId, Content, ExecKey, ProgramEntry, ExecEntry, UnixKey, PortRule, NetEntry, PortList);
