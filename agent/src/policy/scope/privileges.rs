//! `spec.scope.privileges`: classes of what a member can do beyond its own session.

use tipstaff_common::privilege;

use crate::policy::{
    problem::Problems,
    types::Kind,
    walk::{At, Fields, Keys, fields, list, word},
};

const PRIVILEGES: Keys = Keys { known: &["allow", "deny"], later: &["hold"] };

/// The classes, by their words.
pub(in crate::policy) const PRIVILEGE_CLASSES: [(&str, u32); 17] = [
    ("setuid", privilege::PRIVILEGE_SETUID),
    ("capabilities", privilege::PRIVILEGE_CAPABILITIES),
    ("ptrace", privilege::PRIVILEGE_PTRACE),
    ("signal", privilege::PRIVILEGE_SIGNAL),
    ("bpf", privilege::PRIVILEGE_BPF),
    ("modules", privilege::PRIVILEGE_MODULES),
    ("kexec", privilege::PRIVILEGE_KEXEC),
    ("mount", privilege::PRIVILEGE_MOUNT),
    ("chroot", privilege::PRIVILEGE_CHROOT),
    ("namespaces", privilege::PRIVILEGE_NAMESPACES),
    ("keyring", privilege::PRIVILEGE_KEYRING),
    ("perf-event", privilege::PRIVILEGE_PERF_EVENT),
    ("userfaultfd", privilege::PRIVILEGE_USERFAULTFD),
    ("io-uring", privilege::PRIVILEGE_IO_URING),
    ("kernel-settings", privilege::PRIVILEGE_KERNEL_SETTINGS),
    ("raw-devices", privilege::PRIVILEGE_RAW_DEVICES),
    ("delegation", privilege::PRIVILEGE_DELEGATION),
];

/// The word for `privilege::PRIVILEGE_*`, or for `AGENT_FILES`; `unknown` for what is neither.
#[must_use]
pub fn privilege_name(class: u32) -> &'static str {
    if class == privilege::AGENT_FILES {
        return "agent-files";
    }
    PRIVILEGE_CLASSES.iter().find(|(_, mask)| *mask == class).map_or("unknown", |(word, _)| *word)
}

/// What a policy says of classes of privileges: masks of `privilege::PRIVILEGE_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Privileges {
    /// May be used, and no others. `None`: those that the kind allows.
    pub allow: Option<u32>,
    /// May not be used, whatever allows them.
    pub deny: u32,
}

impl Privileges {
    /// What may be used in a session of `kind`.
    #[must_use]
    pub fn of(self, kind: Kind) -> u32 {
        self.allow.unwrap_or_else(|| kind.privileges()) & !self.deny
    }

    /// What may be used on members of other sessions too: what is listed. Of the kinds only breakglass goes that far.
    #[must_use]
    pub fn on_neighbours(self, kind: Kind) -> u32 {
        let listed = self.allow.is_some() || kind == Kind::Breakglass;
        if listed { self.of(kind) & privilege::PRIVILEGE_ON_OTHERS } else { 0 }
    }
}

impl Kind {
    /// The classes of privileges that may be used where the policy does not list them. An operator has what administration
    /// takes, asking the host's daemons too, and not what else leads out of a session or takes the kernel's word from it.
    #[must_use]
    pub const fn privileges(self) -> u32 {
        let leads_out = privilege::PRIVILEGE_PTRACE
            | privilege::PRIVILEGE_BPF
            | privilege::PRIVILEGE_MODULES
            | privilege::PRIVILEGE_KEXEC
            | privilege::PRIVILEGE_KERNEL_SETTINGS
            | privilege::PRIVILEGE_RAW_DEVICES;
        match self {
            Self::Ci | Self::Agent => 0,
            Self::Service => privilege::PRIVILEGE_KEYRING | privilege::PRIVILEGE_IO_URING,
            Self::Operator => privilege::PRIVILEGE_ALL & !leads_out,
            Self::Breakglass => privilege::PRIVILEGE_ALL,
        }
    }
}

/// `None`: the policy does not have the key.
pub(super) fn read(scope: &Fields<'_>, problems: &mut Problems) -> Option<Privileges> {
    let field = scope.get("privileges")?;
    let section = fields(field.at(), PRIVILEGES, problems)?;
    let mut mask = |key: &str| {
        let field = section.get(key)?;
        let nodes = list(field.at(), problems).unwrap_or_default();
        Some(nodes.iter().enumerate().fold(0, |mask, (index, node)| {
            let path = format!("{}[{index}]", field.path);
            mask | word(At { node, path: &path }, &PRIVILEGE_CLASSES, problems).unwrap_or(0)
        }))
    };
    Some(Privileges { allow: mask("allow"), deny: mask("deny").unwrap_or(0) })
}
