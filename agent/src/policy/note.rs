//! What a policy's author should know about a host: rules that do less there than they seem to.

use std::fmt;

use super::types::Effect;

/// A rule that does less on this host than it seems to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// What the rule names does not exist here.
    Missing {
        /// The rule's id.
        rule: String,
        /// What it would do.
        effect: Effect,
        /// What it names, with its key.
        target: String,
    },
    /// What the rule names as a program is a directory.
    Directory {
        /// The rule's id.
        rule: String,
        /// What it names, with its key.
        target: String,
    },
    /// What the rule names as a directory is a file.
    File {
        /// The rule's id.
        rule: String,
        /// What it names, with its key.
        target: String,
    },
    /// A file does not have the digest that its rule asks for, or could not be hashed.
    Digest {
        /// The rule's id.
        rule: String,
        /// What was found.
        found: String,
    },
    /// A rule with a digest names a script, whose interpreter reads it after the kernel has looked at it.
    Script {
        /// The rule's id.
        rule: String,
        /// The script.
        path: String,
    },
    /// Rules deny all that the rule on addresses allows.
    Denied {
        /// The allow rule's id.
        rule: String,
        /// The first deny rule's id.
        by: String,
    },
    /// An earlier rule says the same of the same.
    Repeated {
        /// The rule's id.
        rule: String,
        /// The earlier rule's id.
        first: String,
    },
    /// Everything that an allow rule names is named by deny rules too, perhaps by another path.
    Overridden {
        /// The allow rule's id.
        rule: String,
        /// What it names.
        path: String,
        /// The first deny rule's id.
        by: String,
    },
    /// A class of sockets is allowed that no rule lets go anywhere, or be listened on.
    Useless {
        /// Its word.
        class: &'static str,
    },
    /// An allow rule names who starts programs outside of sessions, and the policy does not allow that.
    Delegation {
        /// The allow rule's id.
        rule: String,
        /// What it names.
        place: String,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { rule, effect: Effect::Allow, target } => {
                write!(f, "rule {rule} allows nothing: {target} does not exist here now")
            }
            Self::Missing { rule, effect: Effect::Deny, target } => {
                write!(f, "rule {rule} denies nothing yet: {target} does not exist here now")
            }
            Self::Directory { rule, target } => {
                write!(f, "rule {rule} names no program: {target} is a directory; write dir for all below it")
            }
            Self::File { rule, target } => {
                write!(f, "rule {rule} names no directory: {target} is a file; write path for it alone")
            }
            Self::Digest { rule, found } => write!(f, "rule {rule} denies what it names: {found}"),
            Self::Script { rule, path } => write!(
                f,
                "rule {rule} holds for the script {path} as the kernel looks at it: its interpreter opens it again by its \
                 path, so that whoever can write it, or a folder above it, changes what runs; keep it where root alone can \
                 write, and let another user than root start the session, or leave the digest out"
            ),
            Self::Denied { rule, by } => write!(f, "rule {rule} has no effect: rule {by} denies what it allows"),
            Self::Repeated { rule, first } => write!(f, "rule {rule} says what rule {first} says: keep one"),
            Self::Overridden { rule, path, by } => {
                write!(f, "rule {rule} has no effect: rule {by} denies the same file as {path}")
            }
            Self::Useless { class } => write!(
                f,
                "sockets of class {class} are not made: no rule on addresses lets them go anywhere or be listened on"
            ),
            Self::Delegation { rule, place } => write!(
                f,
                "rule {rule} does not allow {place}: who is reached there starts programs outside of the session; add \
                 delegation to spec.scope.privileges.allow, if that is meant"
            ),
        }
    }
}
