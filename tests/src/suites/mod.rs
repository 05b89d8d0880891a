//! The tests, one file a subject.

mod adopt;
mod arguments;
pub(crate) mod attach;
mod badinput;
mod budgets;
mod cli;
mod clocks;
mod control;
mod crossed;
mod crowd;
mod cut;
mod deadline;
mod delegation;
mod destinations;
mod digests;
mod end;
mod evidence;
mod exec;
mod faults;
mod flows;
mod formats;
mod inbound;
mod interfaces;
mod limits;
mod losing;
mod losses;
mod members;
mod memory;
mod moved;
mod multipath;
mod names;
mod narrow;
mod neighbours;
mod net;
mod ports;
mod privileges;
mod programs;
mod raced;
mod random;
mod raw;
mod received;
mod renamed;
mod resolvers;
mod restart;
mod revoke;
mod rings;
mod routes;
mod rules;
mod run;
pub(crate) mod scene;
mod scope;
mod sockets;
mod stale;
mod suspend;
mod taken;
mod time;
mod unresolved;
mod verifier;
mod views;
mod violations;
mod wire;
mod within;

use crate::{escapes, harness::registry::Test};

/// The test of that name.
pub(crate) fn find(name: &str) -> Option<&'static Test> {
    ALL.iter().flat_map(|suite| suite.iter()).find(|test| test.name == name)
}

/// Every suite.
pub(crate) const ALL: &[&[Test]] = &[
    exec::TESTS,
    programs::TESTS,
    arguments::TESTS,
    names::TESTS,
    raced::TESTS,
    random::TESTS,
    views::TESTS,
    violations::TESTS,
    digests::TESTS,
    unresolved::TESTS,
    members::TESTS,
    neighbours::TESTS,
    routes::TESTS,
    attach::TESTS,
    crowd::TESTS,
    net::TESTS,
    scope::TESTS,
    ports::TESTS,
    destinations::TESTS,
    narrow::TESTS,
    sockets::TESTS,
    inbound::TESTS,
    interfaces::TESTS,
    budgets::TESTS,
    privileges::TESTS,
    received::TESTS,
    taken::TESTS,
    delegation::TESTS,
    time::TESTS,
    deadline::TESTS,
    limits::TESTS,
    clocks::TESTS,
    control::TESTS,
    revoke::TESTS,
    end::TESTS,
    faults::TESTS,
    losing::TESTS,
    memory::TESTS,
    flows::TESTS,
    formats::TESTS,
    wire::TESTS,
    within::TESTS,
    cut::TESTS,
    crossed::TESTS,
    moved::TESTS,
    multipath::TESTS,
    raw::TESTS,
    renamed::TESTS,
    resolvers::TESTS,
    restart::TESTS,
    adopt::TESTS,
    losses::TESTS,
    rules::TESTS,
    run::TESTS,
    cli::TESTS,
    evidence::TESTS,
    verifier::TESTS,
    rings::TESTS,
    badinput::TESTS,
    suspend::TESTS,
    stale::TESTS,
    escapes::TESTS,
];
