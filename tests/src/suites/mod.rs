//! The tests, one file a subject.

mod adopt;
mod attach;
mod badinput;
mod cli;
mod control;
mod cut;
mod deadline;
mod delegation;
mod end;
mod evidence;
mod exec;
mod faults;
mod flows;
mod limits;
mod losing;
mod losses;
mod members;
mod multipath;
mod narrow;
mod net;
mod privileges;
mod programs;
mod random;
mod restart;
mod rings;
mod routes;
mod run;
mod scene;
mod scope;
mod sockets;
mod stale;
mod suspend;
mod taken;
mod time;
mod views;
mod wire;
mod within;

use crate::harness::registry::Test;

/// Every suite.
pub(crate) const ALL: &[&[Test]] = &[
    exec::TESTS,
    programs::TESTS,
    random::TESTS,
    views::TESTS,
    members::TESTS,
    routes::TESTS,
    attach::TESTS,
    net::TESTS,
    scope::TESTS,
    narrow::TESTS,
    sockets::TESTS,
    privileges::TESTS,
    taken::TESTS,
    delegation::TESTS,
    time::TESTS,
    deadline::TESTS,
    limits::TESTS,
    control::TESTS,
    end::TESTS,
    faults::TESTS,
    losing::TESTS,
    flows::TESTS,
    wire::TESTS,
    within::TESTS,
    cut::TESTS,
    multipath::TESTS,
    restart::TESTS,
    adopt::TESTS,
    losses::TESTS,
    run::TESTS,
    cli::TESTS,
    evidence::TESTS,
    rings::TESTS,
    badinput::TESTS,
    suspend::TESTS,
    stale::TESTS,
];
