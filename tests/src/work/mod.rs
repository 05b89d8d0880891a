//! Workloads: what the programs do that tests start in sessions. Small, so that each line of a test says what happens.
//!
//! `--work` is followed by words. A word is an action with its arguments, or something that changes the process and is
//! followed by the rest: `daemonise report FILE connect tcp 127.0.0.1 80`. A `+` stands between actions that follow each
//! other. An action prints one line: `ok`, `errno N`, or of a child `exit N` or `signal N`.

mod ancillary;
mod argv;
pub(crate) mod flows;
mod guard;
pub(crate) mod held;
mod inform;
pub(crate) mod measure;
mod network;
mod place;
pub(crate) mod privilege;
mod process;
mod raw;
pub(crate) mod ring;
pub(crate) mod sockets;
mod strive;
mod stubborn;
pub(crate) mod victims;
pub(crate) mod ways;

pub(crate) use process::in_child;

use std::{fs, process::ExitCode};

use anyhow::{Context, Result, bail};
use nix::{errno::Errno, sys::socket::SockType};

/// The exit status of a workload that was not understood.
pub(crate) const MISUSE: u8 = 99;

/// What comes after `--work`.
pub(crate) fn main(words: &[String]) -> ExitCode {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    ExitCode::from(run(&words))
}

/// What comes after `--script`: the interpreter of scripts that begin with `#!…/program --script`; the other lines are
/// words as after `--work`.
pub(crate) fn script(words: &[String]) -> ExitCode {
    let text = words.first().map(fs::read_to_string);
    let Some(Ok(text)) = text else { return ExitCode::from(MISUSE) };
    let words: Vec<&str> = text.lines().skip(1).flat_map(str::split_whitespace).collect();
    ExitCode::from(run(&words))
}

/// Does `words`; the process's exit status.
pub(crate) fn run(words: &[&str]) -> u8 {
    let mut status = 0;
    for action in words.split(|word| *word == "+") {
        status = act(action).unwrap_or_else(|error| {
            eprintln!("work {action:?}: {error:#}");
            MISUSE
        });
    }
    status
}

fn act(words: &[&str]) -> Result<u8> {
    let (word, rest) = words.split_first().context("there is no action")?;
    match *word {
        "measure" => measure::measure(rest),
        "under" => guard::under(rest),
        "exec" => process::exec(rest),
        "spawn" => process::spawn(rest),
        "vspawn" => process::vspawn(rest),
        "spawn-by-descriptor" => process::spawn_by_descriptor(rest),
        "made" => process::made(rest),
        "many" => process::many(rest),
        "flip-argv" => argv::flip(rest),
        "besiege" => process::besiege(rest),
        "tree" => process::tree(rest),
        "storm" => process::storm(rest),
        "throngs" => process::throngs(rest),
        "crowd" => process::crowd(rest),
        "attach-itself" => process::attach_itself(rest),
        "fork" => process::fork(rest),
        "background" => process::background(rest),
        "thread" => process::thread(rest),
        "daemonise" => process::daemonise(rest),
        "spin" => process::spin(),
        "idle" => process::idle(),
        "strive" => strive::strive(rest),
        "late" => strive::late(rest),
        "count" => stubborn::count(rest),
        "catch" => stubborn::catch(rest),
        "deaf" => stubborn::deaf(rest),
        "stop" => stubborn::stop(),
        "traced" => stubborn::traced(rest),
        "bomb" => stubborn::bomb(rest),
        "append" => stubborn::append(rest),
        "terminal" => stubborn::terminal(rest),
        "cgroup" => place::cgroup(rest),
        "below" => place::below(rest),
        "nest" => place::nest(rest),
        "clone-into" => place::clone_into(rest),
        "cloned" => place::cloned(rest),
        "numbered" => place::numbered(rest),
        "unshare" => place::unshare(rest),
        "apart" => place::apart(rest),
        "roam" => place::roam(rest),
        "return" => place::go_home(rest),
        "connect" => network::connect(rest),
        "connect-waiting" => network::connect_waiting(rest),
        "send" => network::send(rest),
        "send-segments" => ancillary::send_segments(rest),
        "send-each" => network::send_each(rest),
        "send-v4-on-v6" => network::send_v4_on_v6(rest),
        "fast-open" => network::fast_open(rest),
        "fast-open-connect" => network::fast_open_connect(rest),
        "reconnect" => network::reconnect(rest),
        "connect-when-told" => network::connect_when_told(rest),
        "flood" => network::flood(rest),
        "flow" => network::flow(rest),
        "flips" => network::flips(rest),
        "hold" => network::hold(rest),
        "hold-lite" => network::hold_lite(rest),
        "hold-class" => held::hold_class(rest),
        "hold-sctp" => network::hold_sctp(rest),
        "hold-to" => network::hold_to(rest),
        "open" => flows::open(rest),
        "serve" => flows::serve(rest),
        "serve-sctp" => flows::serve_sctp(rest),
        "host" => flows::host(rest),
        "answer" => flows::answer(rest),
        "chat" => flows::chat(rest, SockType::Stream),
        "listen-first" => flows::listen_first(rest),
        "listen-to" => flows::chat(rest, SockType::Datagram),
        "unix" => flows::unix(rest),
        "listen" => flows::listen(rest),
        "loopback" => flows::loopback(rest),
        "call" => network::call(rest),
        "call-by-child" => network::call_by_child(rest),
        "begin" => network::begin(rest),
        "make" => sockets::make(rest),
        "make-sockets" => sockets::make_many(),
        "bind" => sockets::bind_to(rest),
        "unix-to" => sockets::unix(rest),
        "hand-out" => sockets::hand_out(rest),
        "take" => sockets::take(rest),
        "inherit" => sockets::inherit(rest),
        "connect-by" => sockets::connect_by(rest),
        "give" => sockets::give(rest),
        "receive" => sockets::receive(rest),
        "take-flow" => sockets::take_flow(rest),
        "descriptor" => sockets::descriptor(rest),
        "early" => sockets::early(rest),
        "beforehand" => sockets::beforehand(rest),
        "source-route" => ancillary::source_route(rest),
        "set-option" => ancillary::set_option(rest),
        "address-form" => ancillary::address_form(rest),
        "raw-unspec" => sockets::raw_unspec(rest),
        "hear" => sockets::hear(rest),
        "hear-serving" => sockets::hear_serving(rest),
        "echo" => sockets::echo(rest),
        "connect-many" => sockets::connect_many(rest),
        "visit" => sockets::visit(rest),
        "send-many" => sockets::send_many(rest),
        "send-through" => sockets::send_through(rest),
        "stream" => sockets::stream(rest),
        "read-when-spent" => sockets::read_when_spent(rest),
        "privilege" => privilege::attempt(rest),
        "own-file" => privilege::own_file(rest),
        "signal-in" => privilege::signal_in(rest),
        "enter" => privilege::enter(rest),
        "take-from" => privilege::take_from(rest),
        "own-standing" => privilege::own_standing(),
        "by-number" => privilege::by_number(rest),
        "own-child" => privilege::own_child(),
        "drop-capabilities" => privilege::drop_capabilities(),
        "by" => ways::by(rest),
        "bind-in-ring" => ways::bind_in_ring(rest),
        "stuff" => ways::stuff(rest),
        "multipath-hold" => ways::multipath_hold(rest),
        "multipath-chat" => ways::multipath_chat(rest),
        "act" => crate::escapes::act(rest),
        "attempts" => crate::escapes::attempts(rest),
        "multipath-serve" => ways::multipath_serve(rest),
        _ => inform::act(word, rest),
    }
}

/// Prints what became of an operation.
pub(crate) fn say(result: Result<(), Errno>) -> u8 {
    match result {
        Ok(()) => println!("ok"),
        Err(errno) => println!("errno {}", errno as i32),
    }
    0
}

/// Takes one argument off the front.
fn one<'a, 'b>(words: &'b [&'a str]) -> Result<(&'a str, &'b [&'a str])> {
    match words.split_first() {
        Some((first, rest)) => Ok((first, rest)),
        None => bail!("an argument is missing"),
    }
}
