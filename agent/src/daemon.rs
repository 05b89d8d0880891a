//! The agent as a process: takes its locks, replaces what an earlier agent left, proves its controls, then feeds one
//! engine from the sockets, the rings, the clock and signals. Also `probe` and `disarm` where no agent runs.

use std::{
    fs, iter,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tracing::{info, warn};

use crate::{
    api::{door::Sessions, refused::Refused, server::Listeners, wire},
    cli::{Exit, Failure},
    config::{Attach, Config, cgroup2_mount},
    enforce::{FileWatch, SessionCgroup, Song, prove, prove_destroy, remember_home},
    engine::{
        self, Control, Engine, Parts, Past, RecoverError, Recovered, controls_from_song, flow_destroy, recover,
        see_others, wire_control,
    },
    evidence::{self, Body, Log},
    gate::gate,
    ground::{Ground, clean_up, unable, unexpected},
    host_events::{ClockSteps, ProcessorEvents},
    kernel::{self, CgroupRoot, Kernel, KernelError, Options, Pins, Tier},
    made::Made,
    pace::Pace,
    policy::delegates,
    readable::Readable,
    session::EndReason,
    store::Kept,
};

/// Calls that wait for the engine.
const CALLS: usize = 64;
/// What helpers saw, taken at a time.
const NOTES: usize = 1024;

/// Runs the agent until it is told to stop or disarmed.
///
/// # Errors
/// It cannot start; nothing half-started remains.
pub fn run(config: &Config, confine: Option<&Path>) -> Result<(), Failure> {
    Kernel::check_host().map_err(unable)?;
    let groups = (config.groups.read.gid()?, config.groups.operate.gid()?);
    let mount = cgroup2_mount()?;
    // before anybody's programs can be told who this is
    remember_home(&mount).map_err(unexpected)?;
    let confine = confine.map(|path| CgroupRoot::open(path, &mount)).transpose();
    let confine = confine.map_err(|e| if e.host_cannot() { unable(e) } else { Failure::new(Exit::Usage, e) })?;
    let (listeners, mut ground) = Ground::take_for_good(config, mount, confine.as_ref(), groups)?;
    let (left, past) = match recovered(&mut ground) {
        Ok(recovered) => recovered,
        Err(failure) => {
            ground.leave();
            return Err(failure);
        }
    };
    let loaded = load(&ground, config.attach, confine.as_ref());
    let (mut kernel, controls) = match loaded {
        Ok(loaded) => loaded,
        Err(failure) => {
            // what an earlier agent pinned stays in force
            if !left.in_force {
                if let Err(problem) = ground.pins.clear() {
                    warn!("{problem}");
                }
                ground.leave();
            }
            return Err(failure);
        }
    };
    protect(&mut kernel, config);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(unexpected)?;
    runtime.block_on(serve(config, ground, confine, (kernel, controls), listeners, (left, past)))
}

/// Ends what an earlier agent left and what is over.
fn recovered(ground: &mut Ground) -> Result<(Recovered, Past), Failure> {
    let left = recover(&ground.pins, &ground.store, &mut ground.log, &ground.root.path, None).map_err(unrecovered)?;
    if !left.ended.is_empty() {
        info!("{} sessions of an earlier agent were ended", left.ended.len());
    }
    let past = Past::read(&ground.log, &left.going_on, left.in_force).map_err(unexpected)?;
    Ok((left, past))
}

/// Finds out what this host can enforce, in programs of its own that are gone afterwards.
///
/// # Errors
/// The host cannot, or the canary could not be run.
pub fn probe(config: &Config) -> Result<wire::Probe, Failure> {
    Kernel::check_host().map_err(unable)?;
    let mount = cgroup2_mount()?;
    // beside the agent's own, whose pinned programs would refuse a canary that they do not know; and never at the root
    let mut name = config.paths.cgroup()?.into_os_string();
    name.push(format!("-probe-{}", std::process::id()));
    let mut made = Made::default();
    let mut prove = || {
        let root = CgroupRoot::create(Path::new(&name), &mount, &mut made).map_err(unable)?;
        if config.attach == Attach::Sessions {
            return load_with((&root, &root), None, &mount, None, None);
        }
        let (sessions, outside) = (root.path.join("sessions"), root.path.join("outside"));
        let sessions = CgroupRoot::create(&sessions, &mount, &mut made).map_err(unable)?;
        CgroupRoot::create(&outside, &mount, &mut made).map_err(unable)?;
        load_with((&sessions, &root), Some(&outside), &mount, None, None)
    };
    let proven = prove();
    made.take_away();
    let (kernel, controls) = proven?;
    Ok(wire::Probe {
        kernel: kernel::release(),
        tier: kernel.tier().as_str().into(),
        attach: config.attach.as_str().into(),
        controls: controls.iter().map(wire_control).collect(),
    })
}

/// Ends what a dead agent left and takes its programs off the host.
///
/// # Errors
/// An agent runs, or what it left cannot be removed.
pub fn disarm(config: &Config) -> Result<wire::Disarmed, Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(unable(KernelError::NotRoot { uid: nix::unistd::geteuid().as_raw() }));
    }
    let mut ground = Ground::take(config, cgroup2_mount()?)?;
    let all = Some(EndReason::Operator);
    let recovered =
        recover(&ground.pins, &ground.store, &mut ground.log, &ground.root.path, all).map_err(unexpected)?;
    let sessions = recovered.ended;
    let uid = nix::unistd::getuid().as_raw();
    let principal = evidence::Principal { uid, gid: nix::unistd::getgid().as_raw(), login_uid: None };
    let count = sessions.len() as u64;
    let record = Body::Disarm(evidence::Disarm { principal, sessions });
    ground.log.append_durable(&record, engine::now()).map_err(unexpected)?;
    ground.log.flush().map_err(unexpected)?;
    let pins = config.paths.pins.display().to_string();
    let mut disarmed = wire::Disarmed { sessions: count, ..wire::Disarmed::default() };
    match ground.pins.clear() {
        Ok(removed) => disarmed.removed.push(format!("{pins} ({removed} pins)")),
        Err(problem) => disarmed.left.push(problem.to_string()),
    }
    clean_up(ground.pins, &ground.root.path);
    Ok(disarmed)
}

/// Removes what an agent that was killed at the wrong moment left empty in the sessions' cgroup.
fn remove_empty(root: &Path, kept: &[Kept]) {
    let entries = fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path());
    let ours = entries.filter(|path| path.is_dir() && kept.iter().all(|k| k.cgroup != *path));
    for cgroup in ours.filter_map(SessionCgroup::existing) {
        if let (false, Err(error)) = (cgroup.is_populated(), cgroup.remove()) {
            warn!("cannot remove cgroup {}: {error}", cgroup.path().display());
        }
    }
}

fn load(ground: &Ground, attach: Attach, confine: Option<&CgroupRoot>) -> Result<(Kernel, Vec<Control>), Failure> {
    let Ground { root, mount, pins, .. } = ground;
    // an agent that is confined sees nothing beyond
    let place = match (attach, confine) {
        (Attach::Sessions, _) => root.clone(),
        (Attach::Root, Some(confine)) => confine.clone(),
        (Attach::Root, None) => CgroupRoot::open(mount, mount).map_err(unable)?,
    };
    load_with((root, &place), None, mount, confine, Some(pins))
}

/// Keeps members away from what is the agent's own on the host.
fn protect(kernel: &mut Kernel, config: &Config) {
    let paths = &config.paths;
    let own = [&paths.state, &paths.evidence, &paths.runtime, &paths.policies].into_iter().chain(&config.file);
    let own: Vec<PathBuf> = own.cloned().collect();
    if let Err(problem) = kernel.protect(&own, &paths.pins) {
        warn!("members are not kept from the agent's own files: {problem}");
    }
    let delegates = kernel.set_delegates(&delegates::name_keys());
    let delegates = delegates.and_then(|()| kernel.set_spools(delegates::FOLDERS, delegates::first_folder()));
    if let Err(problem) = delegates {
        warn!("members are not kept from daemons that start programs for them: {problem}");
    }
}

/// Loads the programs for the sessions' cgroup, attached to it or to one above, and lets the canary, which comes `from` a
/// cgroup, find the tier: by trying, not by the kernel's version.
fn load_with(
    (root, attach): (&CgroupRoot, &CgroupRoot),
    from: Option<&Path>,
    mount: &Path,
    confine: Option<&CgroupRoot>,
    pins: Option<&Pins>,
) -> Result<(Kernel, Vec<Control>), Failure> {
    let options = Options { root, attach, confine, pins };
    let mut kernel = Kernel::load(&options).map_err(unable)?;
    match take_over(&mut kernel, &options, from) {
        Ok(song) => {
            let mut controls = controls_from_song(kernel.tier(), kernel.without_lsm(), kernel.without_hooks(), &song);
            if attach.id != root.id {
                see_others(&mut controls, kernel.tier(), &song);
            }
            controls.push(flow_destroy(&prove_destroy(mount)));
            Ok((kernel, controls))
        }
        Err(problem) => {
            if let Some(pins) = pins {
                kernel.withdraw(pins);
            }
            Err(unable(problem))
        }
    }
}

/// Makes the new programs the ones that speak, lets the canary prove them alone, and only then takes the earlier ones
/// off.
fn take_over(kernel: &mut Kernel, options: &Options<'_>, from: Option<&Path>) -> Result<Song, KernelError> {
    let (root, pins) = (&options.root.path, options.pins);
    kernel.speak()?;
    let mut song = prove(kernel, root, from)?;
    if kernel.tier() == Tier::Full && !song.exec_stopped(Tier::Full) {
        let why = "they attach and do not decide: is bpf in /sys/kernel/security/lsm?";
        kernel.leave_lsm(why.to_owned(), options)?;
        // what is in their place is proven by itself
        song = prove(kernel, root, from)?;
    }
    if let Some(pins) = pins {
        if kernel.inherits_clock(pins)? {
            kernel.arm_clock(Some(pins))?;
        }
        kernel.replace_others(pins)?;
    }
    Ok(song)
}

async fn serve(
    config: &Config,
    mut ground: Ground,
    confine: Option<CgroupRoot>,
    (kernel, controls): (Kernel, Vec<Control>),
    listeners: Listeners,
    (left, past): (Recovered, Past),
) -> Result<(), Failure> {
    let (notes, mut noted) = mpsc::unbounded_channel();
    let (calls, mut called) = mpsc::channel(CALLS);
    let (known, refused) = (Sessions::default(), Refused::default());
    let place = (ground.root.clone(), ground.mount.clone());
    let count = (refused.clone(), notes.clone());
    let gate = gate(kernel.label_reader().map_err(unable)?, place, known.clone(), count);
    let mut terminate = signal(SignalKind::terminate()).map_err(unexpected)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(unexpected)?;
    let timer = Timer::new()?;
    let steps = ClockSteps::watch().map_err(unexpected)?;
    let processors = ProcessorEvents::watch().map_err(unexpected)?;
    // before the first lease is taken: what nobody waits for ends the process
    let mut leases = signal(SignalKind::io()).map_err(unexpected)?;
    let files = FileWatch::open();
    let changes = files.descriptor().map_err(unexpected)?.map(Readable::watch).transpose().map_err(unexpected)?;
    let tier = kernel.tier();
    record_start(&mut ground.log, (tier, config.attach), &controls)?;
    let parts = Parts {
        config: config.clone(),
        kernel,
        pins: ground.pins,
        root: ground.root,
        mount: ground.mount,
        confine,
        controls,
        log: ground.log,
        store: ground.store,
        files,
        notes,
        known,
        refused,
    };
    let root = parts.root.path.clone();
    let mut engine = Engine::new(parts);
    for session in &left.shelters {
        engine.shelter(session).map_err(unable)?;
    }
    engine.adopt(&left.going_on, past).map_err(unexpected)?;
    remove_empty(&root, &left.going_on);
    let rings = watch_rings(&engine)?;
    let server = async { listeners.serve(gate, calls).await };
    tokio::pin!(server);
    eprintln!("tipstaff: ready, tier {}, {}", tier.as_str(), config.paths.runtime.display());
    kernel::trim_heap();
    let mut pace = Pace::default();
    let reason = loop {
        timer.arm(engine.next_tick())?;
        tokio::select! {
            Some(call) = called.recv() => engine.call(call),
            Some(note) = noted.recv() => {
                let more = iter::from_fn(|| noted.try_recv().ok());
                engine.notes(iter::once(note).chain(more.take(NOTES)));
            }
            () = rings[0].ready() => pace.look(&mut engine),
            () = rings[1].ready() => pace.look(&mut engine),
            () = pace.due() => pace.look(&mut engine),
            () = timer.expiry.ready() => engine.tick(),
            () = ready_if_any(changes.as_ref()) => engine.files_changed(),
            Some(()) = leases.recv() => engine.leases_wanted(),
            () = steps.stepped() => {
                steps.arm().map_err(unexpected)?;
                engine.clock_stepped();
            }
            () = processors.ready() => while let Some(which) = processors.next() {
                engine.processor_online(&which);
            },
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
            result = &mut server => result?,
        }
        if engine.is_done() {
            break "disarmed";
        }
    };
    engine.stop(reason);
    // an answer that was just given still has to be written
    let _ = tokio::time::timeout(Duration::from_millis(200), &mut server).await;
    if engine.is_done() {
        let (pins, root) = engine.into_leavings();
        clean_up(pins, &root);
    }
    Ok(())
}

/// Waits for what is watched; for ever where nothing is.
async fn ready_if_any(watched: Option<&Readable>) {
    match watched {
        Some(watched) => watched.ready().await,
        None => std::future::pending().await,
    }
}

fn record_start(log: &mut Log, (tier, attach): (Tier, Attach), controls: &[Control]) -> Result<(), Failure> {
    let tier = match tier {
        Tier::Full => evidence::Tier::Full,
        Tier::NoLsm => evidence::Tier::NoLsm,
    };
    let start = evidence::AgentStart {
        version: env!("CARGO_PKG_VERSION").into(),
        kernel: kernel::release(),
        tier,
        attach: Some(attach.as_str().into()),
        controls: controls.to_vec(),
    };
    log.append_durable(&Body::AgentStart(start), engine::now()).map_err(unexpected)?;
    log.flush().map_err(unexpected)
}

fn watch_rings(engine: &Engine) -> Result<[Readable; 2], Failure> {
    let watch = |ring: BorrowedFd<'_>| Readable::watch(ring.try_clone_to_owned()?);
    let watched: Result<Vec<_>, _> = engine.rings().into_iter().map(watch).collect();
    watched.map_err(unexpected)?.try_into().map_err(|_few| unexpected("the rings are not there"))
}

/// A timer on `CLOCK_BOOTTIME`, which runs on in suspend.
struct Timer {
    timer: TimerFd,
    expiry: Readable,
}

impl Timer {
    fn new() -> Result<Self, Failure> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags).map_err(unexpected)?;
        let expiry = Readable::watch(timer.as_fd().try_clone_to_owned().map_err(unexpected)?).map_err(unexpected)?;
        Ok(Self { timer, expiry })
    }

    /// Sets it to an absolute time in nanoseconds, or off. Setting it forgets an expiry that nobody waited for.
    fn arm(&self, at: Option<u64>) -> Result<(), Failure> {
        let Some(at) = at else { return self.timer.unset().map_err(unexpected) };
        // a time of zero would switch it off
        let time = TimeSpec::from_duration(Duration::from_nanos(at.max(1)));
        self.timer.set(Expiration::OneShot(time), TimerSetTimeFlags::TFD_TIMER_ABSTIME).map_err(unexpected)
    }
}

fn unrecovered(error: RecoverError) -> Failure {
    match error {
        RecoverError::Kernel(error) => unable(error),
        elsewhere @ RecoverError::Elsewhere { .. } => Failure::new(Exit::Usage, elsewhere),
        other => unexpected(other),
    }
}
