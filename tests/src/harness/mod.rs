//! What tests stand on: the registry and the runner, the sandbox that a test runs in, the agent in it, and the guest's
//! init. Knows nothing of what any test is about.

pub(crate) mod agent;
pub(crate) mod bpf;
pub(crate) mod capture;
pub(crate) mod cgroup;
pub(crate) mod descriptors;
pub(crate) mod disk;
pub(crate) mod evidence;
pub(crate) mod guest;
pub(crate) mod interface;
pub(crate) mod launch;
pub(crate) mod locked;
pub(crate) mod mapped;
pub(crate) mod mounts;
pub(crate) mod options;
pub(crate) mod paths;
pub(crate) mod policy;
pub(crate) mod registry;
pub(crate) mod report;
pub(crate) mod runner;
pub(crate) mod sandbox;
pub(crate) mod server;
pub(crate) mod shared;
pub(crate) mod sweep;
pub(crate) mod verity;
pub(crate) mod wait;

/// What nearly every suite needs.
pub(crate) mod prelude {
    pub(crate) use anyhow::{Context as _, Result, ensure};

    pub(crate) use super::{
        launch::Running,
        policy::Policy,
        registry::{FULL, Lacking, NO_LSM, OLD, Test, Tier, WHEREVER},
        sandbox::Sandbox,
        wait::{patience, until},
    };
}
