//! A real listener in a temporary directory, an engine of a few lines, raw connections.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::MetadataExt, net::UnixStream as StdStream},
    path::PathBuf,
    sync::mpsc as std_mpsc,
    thread,
};

use serde_json::{Value, json, value::RawValue};

use super::*;
use crate::{
    api::wire::{Event, Ps, Reply},
    session::SessionId,
};

const DEADLINE: Duration = Duration::from_secs(20);

struct Agent {
    _directory: tempfile::TempDir,
    runtime: PathBuf,
}

/// Serves in a thread of its own; `engine` answers each call there.
fn agent(gate: Gate, mut engine: impl FnMut(Incoming) + Send + 'static) -> Agent {
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path().join("run");
    let gid = nix::unistd::getegid().as_raw();
    let listeners = Listeners::bind(&runtime, gid, gid).unwrap();
    thread::spawn(move || {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio.block_on(async move {
            let (calls, mut incoming) = mpsc::channel(4);
            tokio::join!(listeners.serve(gate, calls), async move {
                while let Some(call) = incoming.recv().await {
                    engine(call);
                }
            })
        })
    });
    Agent { _directory: directory, runtime }
}

fn open_gate() -> Gate {
    Gate { ask: Arc::new(|_, _| Ok(Standing::Free)), count: Arc::new(|call| panic!("{call:?} was refused")) }
}

fn connect(path: PathBuf) -> StdStream {
    let stream = StdStream::connect(path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn call(stream: &mut StdStream, call: &Value) -> Value {
    stream.write_all(&frame::encode(call).unwrap()).unwrap();
    receive(stream)
}

fn receive(stream: &mut StdStream) -> Value {
    let frame = frame::read_blocking(stream, &mut Decoder::default()).unwrap().unwrap();
    serde_json::from_slice(&frame).unwrap()
}

fn empty_ps(call: Incoming) {
    call.reply.finish(Ok(Reply::Ps(Ps::default())));
}

#[test]
fn calls_are_answered_one_after_the_other_and_the_peer_is_known() {
    let own = (nix::unistd::geteuid().as_raw(), std::process::id());
    let agent = agent(open_gate(), move |call| {
        assert_eq!((call.peer.uid, call.peer.pid), own);
        empty_ps(call);
    });
    let mut stream = connect(crate::api::read_socket(&agent.runtime));
    for _ in 0..3 {
        assert_eq!(call(&mut stream, &json!({"method": "dev.tipstaff.Ps"})), json!({"parameters": {"sessions": []}}));
    }
}

#[test]
fn what_changes_something_goes_through_the_operate_socket_only() {
    let agent = agent(open_gate(), |call| {
        call.reply.finish(Err(ApiError::NotFound { message: "reached the engine".to_owned() }));
    });
    let end = json!({"method": "dev.tipstaff.End", "parameters": {"id": "ab", "reason": "operator"}});
    let refused = call(&mut connect(crate::api::read_socket(&agent.runtime)), &end);
    assert_eq!(refused["error"], "dev.tipstaff.Denied");
    let taken = call(&mut connect(crate::api::operate_socket(&agent.runtime)), &end);
    assert_eq!(taken["error"], "dev.tipstaff.NotFound");
}

/// A gate that answers like this, and whom it refused.
fn counting(
    ask: impl Fn() -> Result<Standing, Refusal> + Send + Sync + 'static,
) -> (Gate, std_mpsc::Receiver<RefusedCall>) {
    let (sent, refused) = std_mpsc::channel();
    (Gate { ask: Arc::new(move |_, _| ask()), count: Arc::new(move |call| sent.send(call).unwrap()) }, refused)
}

#[test]
fn the_gate_is_asked_before_every_call() {
    let closed = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asked = Arc::clone(&closed);
    let session = SessionId::from_random([7; 16]);
    let (gate, refused) = counting(move || match asked.load(std::sync::atomic::Ordering::SeqCst) {
        true => Err(Refusal::member(Some(session))),
        false => Ok(Standing::Free),
    });
    let agent = agent(gate, empty_ps);
    let mut stream = connect(crate::api::read_socket(&agent.runtime));
    let ps = json!({"method": "dev.tipstaff.Ps", "parameters": {}});
    assert!(call(&mut stream, &ps)["error"].is_null());
    assert!(refused.try_recv().is_err(), "a call that was answered is counted");
    closed.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(call(&mut stream, &ps), json!({"error": "dev.tipstaff.Member", "parameters": {}}));
    let (uid, pid) = (nix::unistd::geteuid().as_raw(), std::process::id());
    let (socket, reason) = (ControlSocket::Read, CallRefusal::Member);
    let message = "a member of a session cannot speak to the agent".to_owned();
    let told = RefusedCall { session: Some(session), pid, uid, socket, reason, message };
    assert_eq!(refused.recv_timeout(DEADLINE).unwrap(), told);
    assert!(refused.try_recv().is_err(), "a call is counted twice");
}

#[test]
fn a_member_that_may_start_a_session_is_refused_all_else_and_counted() {
    let session = SessionId::from_random([7; 16]);
    let (gate, refused) = counting(move || Ok(Standing::Nesting(session)));
    let agent = agent(gate, empty_ps);
    let mut stream = connect(crate::api::operate_socket(&agent.runtime));
    let command = json!({"path": "/x", "argv": ["x"], "argv_cut": false});
    let run = json!({"policy": "", "policy_source": "", "command": command, "cwd": "/"});
    assert!(call(&mut stream, &json!({"method": "dev.tipstaff.Run", "parameters": run}))["error"].is_null());
    assert!(refused.try_recv().is_err(), "a call that was answered is counted");
    assert_eq!(call(&mut stream, &json!({"method": "dev.tipstaff.Ps"}))["error"], "dev.tipstaff.Member");
    let told = refused.recv_timeout(DEADLINE).unwrap();
    assert_eq!((told.session, told.socket, told.reason), (Some(session), ControlSocket::Operate, CallRefusal::Nesting));
}

#[test]
fn a_bad_call_gets_an_error_and_the_next_call_works() {
    let agent = agent(open_gate(), empty_ps);
    let mut stream = connect(crate::api::read_socket(&agent.runtime));
    for bad in [
        json!("text"),
        json!({"method": "dev.tipstaff.Nothing"}),
        json!({"method": "dev.tipstaff.Ps", "parameters": {"surplus": 1}}),
        json!({"method": "dev.tipstaff.Inspect", "parameters": {}}),
        json!({"method": "dev.tipstaff.Events", "parameters": {}}),
        json!({"method": "dev.tipstaff.Ps", "oneway": true}),
    ] {
        assert_eq!(call(&mut stream, &bad)["error"], "dev.tipstaff.BadRequest", "{bad}");
    }
    assert!(call(&mut stream, &json!({"method": "dev.tipstaff.Ps"}))["error"].is_null());
}

#[test]
fn a_frame_without_end_is_refused_and_disconnected() {
    let agent = agent(open_gate(), empty_ps);
    let mut stream = connect(crate::api::read_socket(&agent.runtime));
    let chunk = vec![b' '; 64 * 1024];
    // the agent stops reading at the limit and closes, so a write fails sooner or later
    for _ in 0..64 {
        if stream.write_all(&chunk).is_err() {
            break;
        }
    }
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    let text = String::from_utf8(rest).unwrap();
    assert!(text.is_empty() || text.contains("longer than 65536 bytes"), "{text}");
}

fn event() -> Reply {
    let record = serde_json::to_string(&"x".repeat(4000)).unwrap();
    Reply::Event(Event { record: RawValue::from_string(record).unwrap() })
}

#[test]
fn a_stream_is_ended_by_its_last_reply() {
    let agent = agent(open_gate(), |mut call| {
        for _ in 0..3 {
            call.reply.try_item(event()).unwrap();
        }
        call.reply.finish(Ok(Reply::EndOfEvents {}));
    });
    let mut stream = connect(crate::api::read_socket(&agent.runtime));
    stream.write_all(b"{\"method\":\"dev.tipstaff.Events\",\"more\":true}\0").unwrap();
    let mut decoder = Decoder::default();
    let mut continues = Vec::new();
    while let Some(frame) = frame::read_blocking(&mut stream, &mut decoder).unwrap() {
        continues.push(serde_json::from_slice::<Value>(&frame).unwrap()["continues"].clone());
    }
    assert_eq!(continues, [json!(true), json!(true), json!(true), Value::Null]);
}

#[test]
fn a_reader_that_does_not_keep_up_is_told_and_disconnected_and_the_engine_never_waits() {
    let (sent, count) = std_mpsc::channel();
    let agent = agent(open_gate(), move |mut call| {
        let mut items = 0_usize;
        while call.reply.try_item(event()).is_ok() {
            items += 1;
        }
        sent.send(items).unwrap();
    });
    let mut stream = connect(crate::api::read_socket(&agent.runtime));
    stream.write_all(b"{\"method\":\"dev.tipstaff.Events\",\"more\":true}\0").unwrap();
    assert_eq!(count.recv_timeout(DEADLINE).unwrap(), QUEUE);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let last = all.split(|&byte| byte == 0).rfind(|frame| !frame.is_empty()).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(last).unwrap()["error"], "dev.tipstaff.Busy");
}

#[test]
fn the_engine_sees_whether_the_caller_is_still_there() {
    let (hand_over, peers) = std_mpsc::channel();
    let agent = agent(open_gate(), move |call| hand_over.send((call.peer.clone(), call.reply)).unwrap());
    let mut stream = connect(crate::api::read_socket(&agent.runtime));
    stream.write_all(b"{\"method\":\"dev.tipstaff.Ps\"}\0").unwrap();
    let (peer, _reply) = peers.recv_timeout(DEADLINE).unwrap();
    assert!(peer.still_connected());
    drop(stream);
    assert!(!peer.still_connected());
}

#[test]
fn an_answer_that_is_dropped_is_an_error_for_the_caller() {
    let agent = agent(open_gate(), drop);
    let mut stream = connect(crate::api::read_socket(&agent.runtime));
    assert_eq!(call(&mut stream, &json!({"method": "dev.tipstaff.Ps"}))["error"], "dev.tipstaff.Failed");
}

#[test]
fn who_asks_nothing_gives_way_and_who_asks_is_answered() {
    let (hand_over, calls) = std_mpsc::channel();
    let agent = agent(open_gate(), move |call| match call.request.streams() {
        // never answered: it keeps its place
        true => hand_over.send(call.reply).unwrap(),
        false => empty_ps(call),
    });
    let path = crate::api::read_socket(&agent.runtime);
    let ps = json!({"method": "dev.tipstaff.Ps"});
    let mut silent: Vec<_> = (0..places::ALL + 1).map(|_| connect(path.clone())).collect();
    // half a call is none
    silent.iter_mut().skip(1).for_each(|stream| stream.write_all(b"{\"method\":").unwrap());
    for _ in 0..places::ALL + 1 {
        assert!(call(&mut connect(path.clone()), &ps)["error"].is_null(), "a call found no place");
    }
    assert_eq!(receive(&mut silent[0])["error"], "dev.tipstaff.Busy", "the first to come was not the first to go");
    drop(silent);
    // what is being answered goes on, and the one call too many is told so
    let follow = json!({"method": "dev.tipstaff.Events", "parameters": {"follow": true}, "more": true});
    let mut busy = Vec::new();
    let until = Instant::now() + DEADLINE;
    loop {
        let mut stream = connect(path.clone());
        let _ = stream.write_all(&frame::encode(&follow).unwrap());
        if let Ok(reply) = calls.recv_timeout(Duration::from_millis(500)) {
            busy.push((stream, reply));
            continue;
        }
        assert_eq!(receive(&mut stream)["error"], "dev.tipstaff.Busy");
        break;
    }
    let own = nix::unistd::geteuid();
    assert!(if own.is_root() { busy.len() == places::ALL } else { busy.len() < places::ALL }, "{} calls", busy.len());
    // a place that is given back is used again; who finds none is told so before he has asked
    busy.pop();
    let ask = || {
        let mut stream = connect(path.clone());
        let _ = stream.write_all(&frame::encode(&ps).unwrap());
        receive(&mut stream)
    };
    while !ask()["error"].is_null() {
        assert!(Instant::now() < until, "the place was not given back");
        thread::yield_now();
    }
}

#[test]
fn a_stale_socket_is_replaced_a_live_one_is_not_and_the_files_are_as_promised() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path().join("a/run");
    let gid = nix::unistd::getegid().as_raw();
    let first = Listeners::bind(&runtime, gid, gid).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&runtime), 0o755);
    assert_eq!(mode(&runtime.join("operate.sock")), 0o660);
    let second = Listeners::bind(&runtime, gid, gid);
    let own = i32::try_from(std::process::id()).unwrap();
    assert!(matches!(second, Err(ServerError::InUse { pid, .. }) if pid == own));

    drop(first);
    assert_eq!(fs::read_dir(&runtime).unwrap().count(), 0, "dropping removes the sockets");
    drop(std::os::unix::net::UnixListener::bind(runtime.join("read.sock")).unwrap());
    let third = Listeners::bind(&runtime, gid, gid).unwrap();
    drop(connect(runtime.join("read.sock")));
    drop(third);

    fs::write(runtime.join("read.sock"), "").unwrap();
    assert!(matches!(Listeners::bind(&runtime, gid, gid), Err(ServerError::NotASocket { .. })));
}

#[test]
fn a_runtime_directory_that_others_can_write_to_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path().join("run");
    fs::create_dir(&runtime).unwrap();
    fs::set_permissions(&runtime, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    assert!(matches!(Listeners::bind(&runtime, 0, 0), Err(ServerError::Directory { mode: 0o777, .. })));
}

#[test]
fn a_path_too_long_for_a_socket_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path().join("r".repeat(100));
    let gid = nix::unistd::getegid().as_raw();
    assert!(matches!(Listeners::bind(&runtime, gid, gid), Err(ServerError::PathTooLong { .. })));
}
