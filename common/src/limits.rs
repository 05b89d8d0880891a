//! Sizes that both sides must agree on.

/// Session slots. Slot 0 belongs to the canary and is never a user's session.
pub const SESSIONS: u32 = 1024;
/// Sessions that live within one that is in none, at most, however deep.
pub const WITHIN: u32 = 16;
/// Policies that can be in force at once, one entry each in `POLICIES`.
pub const POLICIES: u32 = 1024;
/// Tasks that the mirror (task address to label) holds; preallocated.
pub const MIRROR: u32 = 65_536;
/// Port rules that one address prefix can carry after folding (see `rule::NetEntry`).
pub const PORT_RULES: usize = 32;
/// How many of them stand in the trie itself; where there are more, all of them stand in `PORT_LISTS`. As many as a node of a trie
/// has room for in 96 bytes, which is a size that the kernel hands out.
pub const PORT_RULES_INLINE: usize = 4;
/// Directories above a program that a `dir` rule is looked for in. A program below more is denied as unresolved.
pub const DEPTH: u32 = 48;
/// Bytes of the program's path kept in an exec record.
pub const PATH_BYTES: usize = 256;
/// Bytes of the argument vector kept in an exec record.
pub const ARG_BYTES: usize = 256;
/// Bytes of the verdict ring: denials, kills, moves.
pub const VERDICT_RING: u32 = 512 * 1024;
/// Bytes of the activity ring: forks, exits and what was allowed.
pub const ACTIVITY_RING: u32 = 4 * 1024 * 1024;
/// Bytes of the name of a unix socket in a key or record; the kernel's own limit is 108.
pub const UNIX_NAME: usize = 112;
/// Folders of the agent that no member changes, those above them, and those out of which daemons start programs.
pub const PROTECTED: u32 = 128;
/// Answers about destinations that are remembered; a power of two. Who asks about more asks the rules more often.
pub const ANSWERS: u32 = 4096;
/// Distinct destinations that all sessions with such a budget can have had together; preallocated. Full is a fault.
pub const DESTINATIONS: u32 = 65_536;
